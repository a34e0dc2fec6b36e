"""telos: purposes into policies. `import telos` loads no torch; names are resolved when they are used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from telos.core.fit import resume as resume
    from telos.core.online import load_online as load_online
    from telos.core.products import load_product as load_product
    from telos.data.formats import load as load
    from telos.data.measures import measure as measure
    from telos.judge.advise import advise as advise
    from telos.judge.compare import compare as compare
    from telos.judge.evaluate import evaluate as evaluate
    from telos.judge.study import study as study

__version__ = "0.1.0"

_HOMES = {
    "load": "telos.data.formats",
    "load_product": "telos.core.products",
    "load_online": "telos.core.online",
    "resume": "telos.core.fit",
    "evaluate": "telos.judge.evaluate",
    "advise": "telos.judge.advise",
    "compare": "telos.judge.compare",
    "study": "telos.judge.study",
    "measure": "telos.data.measures",
    "use": "telos.core.registry",
    "TelosError": "telos.core.errors",
    "Transitions": "telos.data.records",
    "LoggedBandit": "telos.data.records",
    "Preferences": "telos.data.records",
    "Demonstrations": "telos.data.records",
    "Prompts": "telos.data.records",
    "ScoredTexts": "telos.data.scored",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None and not name.startswith("_"):
        from telos.core.registry import public_classes

        home = public_classes().get(name)
    if home is None:
        raise AttributeError(f"module 'telos' has no attribute '{name}'")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    from telos.core.registry import public_classes

    return sorted([*globals(), *_HOMES, *public_classes()])
