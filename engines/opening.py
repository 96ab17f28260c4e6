"""What a fusion may know of a request before it begins: `ensembles.tokens.base.Opening`, looked up when asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from engines.decode import Team
from engines.shared_text import common_run
from engines.union import Union

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TeamOpening"]


@dataclass(frozen=True)  # no slots: what was looked up is kept
class TeamOpening:
    """The prompts of a team's members, as ids."""

    team: Team
    ids: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...]

    @property
    def alphabet(self) -> Union:
        """The members' symbols."""
        return self.team.union

    @cached_property
    def prompts(self) -> tuple[Tensor, ...]:
        """See `Opening.prompts`."""
        import torch

        found = [self.alphabet.maps[m][torch.tensor(ids)] for m, ids in enumerate(self.ids)]
        return tuple(symbols[symbols < self.alphabet.size] for symbols in found)

    @cached_property
    def text(self) -> bytes:
        """See `Opening.text`."""
        pairs = zip(self.team.members, self.ids, strict=True)
        return common_run([member.vocab.text_of(ids) for member, ids in pairs])
