"""Q-learning on your own gymnasium environment: `python examples/q_learning_own_env.py`.

Any environment with discrete observations and discrete actions works. From the command line, without this script:
`tabular run q_learning --env q_learning_own_env:Bridge-v0` in this folder.
"""

import gymnasium as gym

from tabular.experiments.evaluation import evaluate
from tabular.td.control import ControlConfig, QLearning


class Bridge(gym.Env):
    """Six planks in a row, 0 to 5, start on plank 1. Stepping off plank 0 costs 1; reaching plank 5 pays 1."""

    observation_space = gym.spaces.Discrete(6)
    action_space = gym.spaces.Discrete(2)  # 0: back, 1: forward

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.plank = 1
        return self.plank, {}

    def step(self, action):
        self.plank += 1 if action == 1 else -1
        fell = self.plank < 0
        crossed = self.plank == 5
        self.plank = max(self.plank, 0)
        return self.plank, float(crossed) - float(fell), fell or crossed, False, {}


gym.register("Bridge-v0", entry_point=f"{__name__}:Bridge", max_episode_steps=100)


def main():
    config = ControlConfig(alpha=0.5, gamma=0.9, epsilon=0.2)
    learner = QLearning(lambda: gym.make("Bridge-v0"), config, seed=0)
    learner.advance(5000)
    print("plank  back   forward")
    for plank, (back, forward) in enumerate(learner.action_values[:5]):
        print(f"{plank}    {back:7.3f}  {forward:7.3f}")
    # From plank 1, four steps forward, the last of which pays 1: 0.9 ** 3.
    print(f"value of the start: {learner.action_values[1].max():.3f}, exact: {0.9**3:.3f}")
    result = evaluate(learner, lambda: gym.make("Bridge-v0"), episodes=10, seed=1)
    print(f"greedy policy: return {result.mean_return:.1f} in {result.lengths.mean():.0f} steps")


if __name__ == "__main__":
    main()
