"""Workers: 32 tokens for each of 8 prompts from the bundled model of stories, guided and plain.

guided.py deal       DeAL: 5 candidates a token, 8 tokens of look-ahead, a purpose that counts words
guided.py sampled    plain sampling
"""

from __future__ import annotations

import sys

import telos
from ours import gate
from serve import serve
from telos.core.rng import Rng
from telos.lm.model import load_model
from telos.lm.products import LanguagePolicy

MODEL, TOKENS, PURPOSE = "telos:stories260k", 32, "keywords:cat,dog"
NAMES = ("girl", "boy", "bird", "fish", "bear", "king", "frog", "lady")
PROMPTS = [f"Once upon a time, there was a {name} who" for name in NAMES]

policies = {
    "deal": lambda: telos.DeAL(k=5, lookahead=8, max_new_tokens=TOKENS).fit(model=MODEL, purpose=PURPOSE),
    "sampled": lambda: LanguagePolicy(load_model(MODEL)),
}
policy, rng = policies[sys.argv[1]](), Rng(0).torch()
serve(lambda: policy.generate(PROMPTS, max_new_tokens=TOKENS, rng=rng), gate("transformers", completions=len(PROMPTS)))
