"""One view of every encoder: what a method may read of a tower and where it may act on it.

A *tower* turns images or token ids into a sequence of tokens, runs it through transformer blocks and pools one global
token into the shared embedding space. Which library built the blocks (timm, transformers, open_clip) is known only to
the subclasses. A method acts on a tower in two ways, both removable and composable:

* an :class:`Intervention` changes the token sequence (prompt vectors, representation tokens, parallel adapters);
* a *delta* (:meth:`Tower.attach`) adds to the output of a frozen linear map (LoRA).

With neither, the output equals the library's own, bit for bit (``tests/backbones/test_towers.py``).

Shape letters: B batch, N tokens, D tower width, E shared embedding width, H heads, h x w patch grid.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from benchmark.backbones.split import PARTS, size_of

SITES = ("q", "k", "v", "o", "up", "down")
"""The linear maps of a block that take deltas: attention's query, key, value and output, the MLP's two layers."""


def at_least_fp32(values: Tensor) -> Tensor:
    """Return values in fp32 where they are coarser, unchanged otherwise: what losses and graphs compute in."""
    return values if values.dtype == torch.float64 else values.float()


@dataclass(frozen=True)
class TokenSequence:
    """Tokens on their way through a tower.

    Attributes:
        tokens: ``[B, N, D]``.
        keep: bool ``[B, N]``, False where a token is padding that nobody may attend to; None when all tokens count.
        pooled_at: position of the global token: an int when it is the same in every row, else a tensor ``[B]``.
        content_at: position of the first token after the start or class token that came from the input.
    """

    tokens: Tensor
    keep: Tensor | None
    pooled_at: int | Tensor
    content_at: int = 1

    def with_tokens(self, tokens: Tensor) -> TokenSequence:
        """Return the same sequence with other token values of the same shape."""
        return replace(self, tokens=tokens)

    def insert(self, vectors: Tensor, at: int = 1) -> TokenSequence:
        """Insert ``vectors`` ([n, D] for all rows, or [B, n, D]) before position ``at``; they can be attended to."""
        batch, count = len(self.tokens), vectors.shape[-2]
        new = vectors.to(self.tokens.dtype).expand(batch, -1, -1)
        tokens = torch.cat([self.tokens[:, :at], new, self.tokens[:, at:]], dim=1)
        keep = self.keep
        if keep is not None:
            keep = torch.cat([keep[:, :at], keep.new_ones(batch, count), keep[:, at:]], dim=1)
        pooled_at = self.pooled_at
        if isinstance(pooled_at, Tensor):
            pooled_at = torch.where(pooled_at >= at, pooled_at + count, pooled_at)
        elif pooled_at >= at:
            pooled_at += count
        content_at = self.content_at + count if self.content_at >= at else self.content_at
        return TokenSequence(tokens, keep, pooled_at, content_at)

    def append(self, vectors: Tensor) -> TokenSequence:
        """Append ``vectors`` at the end of every row."""
        return self.insert(vectors, at=self.tokens.shape[1])

    def overwrite(self, vectors: Tensor, at: int = 1) -> TokenSequence:
        """Replace the tokens from position ``at`` on by ``vectors``; what blocks wrote there is discarded."""
        count = vectors.shape[-2]
        new = vectors.to(self.tokens.dtype).expand(len(self.tokens), -1, -1)
        at = at % self.tokens.shape[1]
        return self.with_tokens(torch.cat([self.tokens[:, :at], new, self.tokens[:, at + count :]], dim=1))


class Intervention:
    """Something that acts on the token sequence of a tower. Override what is needed; the default changes nothing.

    Class attributes:
        mixes_tokens: whether :meth:`after_block` looks from one token at another. If not, a tower may hand it the
            global token of the last block alone.
    """

    mixes_tokens: ClassVar[bool] = True

    def on_embeddings(self, sequence: TokenSequence, tower: Tower) -> TokenSequence:
        """Act on the embedded input.

        For text these are word embeddings before positions and LayerNorm, for images patch tokens with positions
        before the pre-norm (where a tower has one).
        """
        return sequence

    def before_block(self, index: int, sequence: TokenSequence, tower: Tower) -> TokenSequence:
        """Act on the input of block ``index`` (0-based)."""
        return sequence

    def after_block(
        self, index: int, before: TokenSequence, after: TokenSequence, tower: Tower
    ) -> TokenSequence:
        """Act on the output of block ``index``, given its input as well."""
        return after


@dataclass(frozen=True)
class TowerOutput:
    """What a pass through a tower returns.

    Attributes:
        sequence: tokens after the final norm, before projection, ``[B, N, D]``, with mask and pooling position.
        taps: for each requested block, image towers: feature map ``[B, D, h, w]``; text towers: ``[B, N, D]``.
        global_row: ``[B, N]`` head mean of the last block's attention row of the global token, when requested:
            image towers scaled scores before softmax, text towers probabilities after it (padding exactly 0).
    """

    sequence: TokenSequence
    taps: dict[int, Tensor]
    global_row: Tensor | None


class Delta:
    """Handle of an attached delta; :meth:`remove` takes it off the tower again."""

    def __init__(self, remove: Callable[[], None]) -> None:
        self._remove = remove

    def remove(self) -> None:
        """Take the delta off its tower."""
        self._remove()


class Tower(ABC):
    """Base of all towers. Subclasses adapt one library's encoder; none of them changes it.

    Attributes:
        kind: "image" or "text".
        width: token width D. embed_dim: shared width E. depth: number of blocks. num_heads: heads H.
    """

    kind: str
    width: int
    embed_dim: int
    num_heads: int
    blocks: Sequence[nn.Module]

    def __init__(self) -> None:
        # (block, linear name) -> {part: [delta modules]}. Deltas belong to the method that made them; keeping them
        # out of the library's modules leaves the backbone's state_dict as it was.
        self._deltas: dict[tuple[int, str], dict[str, list[nn.Module]]] = {}

    @property
    def depth(self) -> int:
        """Number of transformer blocks."""
        return len(self.blocks)

    # ------------------------------------------------------------------ what a subclass says about its library
    @abstractmethod
    def embed(self, inputs: Tensor) -> TokenSequence:
        """Embed images ``[B, C, ...]`` or token ids ``[B, N]`` (text: word embeddings before positions)."""

    @abstractmethod
    def enter(self, sequence: TokenSequence) -> TokenSequence:
        """Finish the embedding: positions and LayerNorm for text, the pre-norm for images."""

    @abstractmethod
    def attention_mask(self, sequence: TokenSequence) -> Any:
        """Return the mask in the form the library's blocks take, or None."""

    @abstractmethod
    def run_block(self, index: int, tokens: Tensor, mask: Any) -> Tensor:
        """Run block ``index`` on ``[B, N, D]``."""

    @abstractmethod
    def run_last_block_for(self, sequence: TokenSequence, mask: Any) -> Tensor:
        """Run the last block for the global token alone, ``[B, 1, D]``: the same mathematics, other rounding."""

    @abstractmethod
    def final_norm(self, tokens: Tensor) -> Tensor:
        """Norm after the last block (identity where the library has none)."""

    @abstractmethod
    def project(self, tokens: Tensor) -> Tensor:
        """Map ``[..., D]`` into the shared space ``[..., E]``."""

    @abstractmethod
    def block_norm(self, index: int, tokens: Tensor) -> Tensor:
        """Return what block ``index`` feeds to its attention: LayerNorm of the input, or the input (post-norm)."""

    @abstractmethod
    def linear_of(self, index: int, site: str) -> tuple[nn.Module, str, int, int]:
        """Return module, its name, and the output columns [start, stop) that serve ``site`` in block ``index``."""

    @abstractmethod
    def linear_at(self, index: int, site: str) -> nn.Module:
        """Return the Linear that serves ``site`` alone; a fused map as a whole until :meth:`split_qkv`."""

    @abstractmethod
    def last_queries_and_keys(self, run: Callable[[], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Call ``run`` (the last block) and return its output with its queries and keys ``[B, H, N, D/H]``."""

    @abstractmethod
    def row_of_scores(self, scores: Tensor, sequence: TokenSequence) -> Tensor:
        """Turn the global token's scaled scores ``[B, H, N]`` into the row ``[B, N]`` of :class:`TowerOutput`."""

    def split_qkv(self) -> None:  # noqa: B027  (nothing to do is the usual case)
        """Give q, k and v a Linear each where the library has one fused map; outputs stay the same.

        What is attached stays attached, and a second call does nothing. Towers without fused maps have nothing to do.

        Raises:
            ValueError: if this form of attention cannot be split.
        """

    def tap(self, sequence: TokenSequence) -> Tensor:
        """Return the feature of a tapped block."""
        return sequence.tokens

    # ------------------------------------------------------------------ what methods and tasks call
    def forward(
        self,
        inputs: Tensor,
        *,
        interventions: Iterable[Intervention] = (),
        taps: Iterable[int] = (),
        global_row: bool = False,
        global_only: bool = False,
    ) -> TowerOutput:
        """Run the tower.

        Args:
            inputs: images ``[B, C, ...]`` or token ids ``[B, N]``.
            interventions: applied in order at each of their places.
            taps: 0-based blocks whose output is returned as well.
            global_row: also return the last block's attention row of the global token.
            global_only: let the last block compute the global token alone where nothing needs the others; the
                returned sequence then holds one token. About a twelfth of the tower's work saved at 12 blocks.
        """
        acts, wanted, tapped = tuple(interventions), frozenset(taps), {}
        sequence = self.embed(inputs)
        for act in acts:
            sequence = act.on_embeddings(sequence, self)
        sequence = self.enter(sequence)
        row: Tensor | None = None
        mask, masked = self.attention_mask(sequence), sequence
        for index in range(self.depth):
            for act in acts:
                sequence = act.before_block(index, sequence, self)
            if sequence.keep is not masked.keep or sequence.tokens.shape != masked.tokens.shape:
                mask, masked = self.attention_mask(sequence), sequence
            before = sequence
            if index < self.depth - 1 or not (global_row or global_only):
                sequence = before.with_tokens(self.run_block(index, before.tokens, mask))
            elif global_row:
                tokens, row = self._block_with_row(index, before, mask)
                sequence = before.with_tokens(tokens)
            elif self._needs_all(acts) or index in wanted:
                sequence = before.with_tokens(self.run_block(index, before.tokens, mask))
            else:
                sequence = TokenSequence(self.run_last_block_for(before, mask), None, pooled_at=0)
                before = TokenSequence(self.pool(before)[:, None], None, pooled_at=0)
            for act in acts:
                sequence = act.after_block(index, before, sequence, self)
            if index in wanted:
                tapped[index] = self.tap(sequence)
        return TowerOutput(sequence.with_tokens(self.final_norm(sequence.tokens)), tapped, row)

    @staticmethod
    def _needs_all(acts: tuple[Intervention, ...]) -> bool:
        return any(act.mixes_tokens and type(act).after_block is not Intervention.after_block for act in acts)

    def pool(self, sequence: TokenSequence) -> Tensor:
        """Return the global token ``[B, D]``, as it is."""
        if isinstance(sequence.pooled_at, Tensor):
            return sequence.tokens[torch.arange(len(sequence.tokens)), sequence.pooled_at]
        return sequence.tokens[:, sequence.pooled_at]

    def features(
        self, inputs: Tensor, *, interventions: Iterable[Intervention] = (), exact: bool = True
    ) -> Tensor:
        """Return pooled, projected features ``[B, E]``, not normalised: what open_clip's encode functions return.

        With ``exact=False`` the last block computes the global token alone: cheaper, equal up to rounding.
        """
        output = self.forward(inputs, interventions=interventions, global_only=not exact)
        return self.project(self.head_norm(self.pool(output.sequence)))

    def head_norm(self, pooled: Tensor) -> Tensor:
        """Return what the library does between pooling and projection (nothing, for most)."""
        return pooled

    def attach(self, index: int, site: str, delta: nn.Module) -> Delta:
        """Add ``delta(x)`` to the output of the frozen linear map ``site`` of block ``index``.

        Args:
            index: 0-based block.
            site: one of :data:`SITES`.
            delta: maps the linear's input ``[..., in]`` to an addend ``[..., out]`` of that site alone.

        Raises:
            ValueError: if the tower has no such block or site.
        """
        if not 0 <= index < self.depth or site not in SITES:
            raise ValueError(f"{self.kind} tower has no site '{site}' in block {index} (depth {self.depth})")
        _, name, _, _ = self.linear_of(index, site)
        parts = self._deltas.setdefault((index, name), {})
        if not parts:
            self._on_first_delta(index, site)
        parts.setdefault(site, []).append(delta)
        return Delta(lambda: self._detach(index, name, site, delta))

    def site_shape(self, index: int, site: str) -> tuple[int, int]:
        """Return (inputs, outputs) of a site."""
        module, _, start, stop = self.linear_of(index, site)
        return self.width if site in PARTS else size_of(module)[0], stop - start

    @contextlib.contextmanager
    def without_deltas(self, *, only_foldable: bool = False) -> Iterator[None]:
        """Leave deltas out for a while; ``only_foldable``: those that the frozen weights could take up (LoRA).

        A delta says so by an attribute ``foldable``.
        """
        kept = self._deltas
        self._deltas = {
            place: {
                site: [item for item in deltas if only_foldable and not getattr(item, "foldable", False)]
                for site, deltas in parts.items()
            }
            for place, parts in kept.items()
        }
        try:
            yield
        finally:
            self._deltas = kept

    # ------------------------------------------------------------------ internals
    def _on_first_delta(self, index: int, site: str) -> None:
        """Hook the linear map once; towers whose block does not call a Linear override :meth:`run_block` instead."""
        module, name, _, _ = self.linear_of(index, site)
        # a partial of a bound method, unlike a closure, follows its tower through copy.deepcopy
        module.register_forward_hook(partial(self._delta_hook, index, name))

    def _delta_hook(
        self, index: int, name: str, _module: nn.Module, args: tuple[Tensor, ...], output: Tensor
    ) -> Tensor:
        return self.add_deltas(index, name, args[0], output)

    def has_deltas(self, index: int, name: str) -> bool:
        """Return whether any delta acts on linear ``name`` of block ``index``."""
        return any(self._deltas.get((index, name), {}).values())

    def add_deltas(self, index: int, name: str, inputs: Tensor, output: Tensor) -> Tensor:
        """Return ``output`` plus the deltas attached to linear ``name`` of block ``index``."""
        parts = self._deltas.get((index, name), {})
        addends: dict[tuple[int, int], Tensor] = {}
        for site, deltas in parts.items():
            _, _, start, stop = self.linear_of(index, site)
            for delta in deltas:
                value = delta(inputs).to(output.dtype)
                addends[start, stop] = addends[start, stop] + value if (start, stop) in addends else value
        if not addends:
            return output
        if sum(stop - start for start, stop in addends) == output.shape[-1]:
            return output + torch.cat([addends[key] for key in sorted(addends)], dim=-1)
        for (start, stop), value in addends.items():
            output = torch.cat([output[..., :start], output[..., start:stop] + value, output[..., stop:]], -1)
        return output

    def _detach(self, index: int, name: str, site: str, delta: nn.Module) -> None:
        deltas = self._deltas.get((index, name), {}).get(site, [])
        self._deltas[index, name][site] = [item for item in deltas if item is not delta]

    def _block_with_row(self, index: int, sequence: TokenSequence, mask: Any) -> tuple[Tensor, Tensor]:
        tokens, queries, keys = self.last_queries_and_keys(
            lambda: self.run_block(index, sequence.tokens, mask)
        )
        # fp32: a rounded score can pick another neighbour (specification of the hypergraph module)
        queries, keys = at_least_fp32(queries), at_least_fp32(keys)
        if isinstance(sequence.pooled_at, Tensor):
            query = queries[torch.arange(len(queries)), :, sequence.pooled_at]
        else:
            query = queries[:, :, sequence.pooled_at]
        scores = torch.einsum("bhd,bhnd->bhn", query, keys) / queries.shape[-1] ** 0.5
        return tokens, self.row_of_scores(scores, sequence)


class TextTower(Tower):
    """What text towers share: a pad id, a longest text, and the words of a prompt.

    Attributes:
        context_length: longest token sequence the tower was trained for, start and end tokens included.
        pad_id: id of the padding token.
    """

    kind = "text"
    context_length: int
    pad_id: int

    @abstractmethod
    def word_embeddings(self, token_ids: Tensor) -> Tensor:
        """Return the rows of the word table, ``[..., D]``: before positions, token types and LayerNorm."""

    @abstractmethod
    def lengths(self, token_ids: Tensor) -> Tensor:
        """Return the number of real tokens of every row, ``[B]``, start and end tokens included."""

    def make_room(self, token_ids: Tensor, count: int) -> Tensor:
        """Shorten texts so that ``count`` vectors can be inserted; the end token always survives.

        Args:
            token_ids: ``[B, N]``, padded on the right.
            count: number of vectors that will be inserted.

        Returns:
            ids ``[B, min(N, context_length - count)]``: longer texts lose words from their tail, not their end token.
        """
        room = self.context_length - count
        if token_ids.shape[1] <= room:
            return token_ids
        lengths = self.lengths(token_ids)
        last = token_ids.gather(1, (lengths - 1)[:, None])
        short = token_ids[:, :room].clone()
        cut = lengths > room
        short[cut, -1] = last[cut, 0]
        return short


class ImageTower(Tower):
    """What image towers share: a patch grid.

    Attributes:
        grid: patches (h, w). image_size: pixels the tower expects.
    """

    kind = "image"
    grid: tuple[int, int]
    image_size: tuple[int, ...]

    def tap(self, sequence: TokenSequence) -> Tensor:
        """Return the patch tokens as a map ``[B, D, h, w]``, without class token and inserted tokens."""
        rows, cols = self.grid
        patches = sequence.tokens[:, sequence.content_at : sequence.content_at + rows * cols]
        return patches.transpose(1, 2).unflatten(2, (rows, cols))

    def patch_features(self, inputs: Tensor, *, interventions: Iterable[Intervention] = ()) -> Tensor:
        """Return projected features ``[B, h w, E]`` of all patches, row by row, not normalised.

        Each patch takes the way of the global token: final norm, what the library does before projecting, projection.
        """
        patches = self.tap(self.forward(inputs, interventions=interventions).sequence)
        return self.project(self.head_norm(patches.flatten(2).transpose(1, 2)))

    def row_of_scores(self, scores: Tensor, sequence: TokenSequence) -> Tensor:
        """Return the head mean of the scaled scores, before softmax."""
        return scores.mean(dim=1)
