"""Models: the actor-critic and its reference, how they are loaded, built and exported.

`trunk` runs a transformers model up to its last hidden states; `distribution` turns hidden states into the
distribution that is sampled and scored; `actor_critic` puts both together. `adapters` switches between the adapters of
one frozen base. `loading`, `reward_models`, `build` and `export` go from folders to models and back.

May import: `rlhf.errors`, `rlhf.records`, `rlhf.config`, `tabular.core`.
"""
