"""Settings of `rlhf serve-reward`."""

from dataclasses import dataclass, field

from rlhf.config.checks import check
from rlhf.config.scores import MixConfig
from rlhf.errors import UserError


@dataclass(frozen=True)
class ServeRewardJob:
    """Answer requests for scores over HTTP, for runs that name this server as reward.url. Of `reward` it reads the
    settings of sources."""

    host: str = "127.0.0.1"
    """Address to listen at; one that other machines can reach needs token_env."""
    port: int = 8000
    """Port to listen at; 0: a free one, which is printed."""
    token_env: str | None = None
    """Environment variable with the bearer token that requests must bring; null: none."""
    max_body_mb: float = 16.0
    """Largest request, in MiB."""
    reward: MixConfig = field(default_factory=MixConfig)

    def __post_init__(self):
        check(0 <= self.port < 65536, "port", self.port, "from 0 to 65535")
        check(self.max_body_mb > 0, "max_body_mb", self.max_body_mb, "positive")
        if not self.reward.is_set:
            raise UserError("nothing to serve: set reward.model, reward.function, reward.rule or reward.sources")
