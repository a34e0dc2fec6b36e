"""Worker: DPO updates of telos on 32 pairs each; reference log-probs were computed beforehand, as for the peer."""

import telos
from pairs import BATCH, BATCHES, BETA, LEARNING_RATE, WARM, model_folder, rows
from serve import serve
from telos.core.fit import resolve_device
from telos.core.method import Spec
from telos.core.rng import Rng

data = rows()
pairs = telos.Preferences(
    [row["prompt"] for row in data], [row["chosen"] for row in data], [row["rejected"] for row in data]
)
method = telos.DPO(beta=BETA, learning_rate=LEARNING_RATE, batch_size=BATCH, warmup_steps=0, max_length=1024)
rng = Rng(0)
spec = method.prepare(Spec(pairs, {"model": model_folder()}, 1000, resolve_device("cpu"), rng))
learner, source = method.learner(spec, rng), method.source(spec)
done = 0


def work(updates: int = BATCHES) -> None:
    global done
    for _ in range(updates):
        learner.update(source.next(learner.behaviour, rng.at("source", done)), rng.at("update", done))
        done += 1


work(WARM)
serve(work)
