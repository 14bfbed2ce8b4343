"""The interface of all towers: what a method may read, and where it may act.

A *tower* turns images or token ids into a sequence of tokens, runs it through transformer blocks and pools one global
token into the shared embedding space. Which library built the blocks (timm, transformers, open_clip) is known only to
the subclasses. A method acts on a tower in two ways, both removable and composable:

* an :class:`Intervention` changes the token sequence (prompt vectors, representation tokens, parallel adapters);
* a *delta* (:meth:`Tower.attach`) adds to the output of a frozen linear map (LoRA).

With neither, the output equals the library's own, bit for bit (``tests/backbones/test_towers.py``).

Shape letters: B batch, N tokens, D tower width, E shared embedding width, H heads; h x w patch grid, t x h x w that of
a volume.
"""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmark.backbones.towers.deltas import SITES, Delta, DeltaSites
from benchmark.backbones.towers.precision import at_least_fp32, full_precision
from benchmark.backbones.towers.tokens import Choose, TokenSequence, TowerOutput, tokens_at

__all__ = [
    "SITES",
    "Delta",
    "ImageTower",
    "Intervention",
    "TextTower",
    "TokenSequence",
    "Tower",
    "TowerOutput",
]


class Tower(DeltaSites):
    """Base of all towers. Subclasses adapt one library's encoder; none of them changes it.

    Attributes:
        kind: "image" or "text".
        width: token width D. embed_dim: shared width E. depth: number of blocks. num_heads: heads H.
        checkpointing: whether a pass with gradient keeps the input of every block alone and computes the rest once
            more on the way back: a third more work, a fraction of the memory, the same gradients.
    """

    embed_dim: int
    num_heads: int
    checkpointing: bool = False
    _compiler: str | None = None

    # ------------------------------------------------------------------ what a subclass says about its library
    @abstractmethod
    def embed(self, inputs: Tensor) -> TokenSequence:
        """Embed images ``[B, C, ...]`` or token ids ``[B, N]`` (text: word embeddings before positions)."""

    @abstractmethod
    def enter(self, sequence: TokenSequence) -> TokenSequence:
        """Finish the embedding: positions and LayerNorm for text, the pre-norm for images."""

    @abstractmethod
    def run_block(self, index: int, tokens: Tensor, mask: Any) -> Tensor:
        """Run block ``index`` on ``[B, N, D]``."""

    @abstractmethod
    def project(self, tokens: Tensor) -> Tensor:
        """Map ``[..., D]`` into the shared space ``[..., E]``."""

    @abstractmethod
    def row_of_scores(self, scores: Tensor, sequence: TokenSequence) -> Tensor:
        """Turn the global token's scaled scores ``[B, H, N]`` into the row ``[B, N]`` of :class:`TowerOutput`."""

    # ------------------------------------------------------------------ where its library does more than nothing
    def attention_mask(self, sequence: TokenSequence) -> Any:
        """Return the mask in the form the library's blocks take, or None."""
        return None

    def block_norm(self, index: int, tokens: Tensor) -> Tensor:
        """Return what block ``index`` feeds to its attention: LayerNorm of the input, or the input (post-norm)."""
        return tokens

    def final_norm(self, tokens: Tensor) -> Tensor:
        """Apply the norm after the last block to every token."""
        return tokens

    def head_norm(self, pooled: Tensor) -> Tensor:
        """Apply what stands between pooling and projection."""
        return pooled

    def tap(self, sequence: TokenSequence) -> Tensor:
        """Return the feature of a tapped block."""
        return sequence.tokens

    # ------------------------------------------------------------------ a block in two steps
    # The second one can be run for some of the tokens. Where a block is of another form, :meth:`opens` says no, and
    # :meth:`last_queries_and_keys` is needed instead.
    def opens(self, index: int) -> bool:
        """Return whether block ``index`` is of the form that the two steps spell out."""
        return True

    def queries_keys_values(
        self, index: int, tokens: Tensor, at: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values ``[B, H, N, D/H]`` of block ``index``, deltas included.

        Args:
            index: 0-based block.
            tokens: its input ``[B, N, D]``.
            at: positions ``[B, m]`` whose queries alone are wanted; None takes all.
        """
        raise NotImplementedError

    def finish_block(
        self, index: int, tokens: Tensor, queries: Tensor, keys: Tensor, values: Tensor, mask: Any
    ) -> Tensor:
        """Run the rest of block ``index`` for ``tokens`` ``[B, m, D]`` with these queries; mask as of ``mask_at``."""
        raise NotImplementedError

    def mask_at(self, mask: Any, positions: Tensor) -> Any:
        """Return what a mask says to the tokens at ``positions`` ``[B, m]``: the same to all, for most towers."""
        return mask

    def last_queries_and_keys(self, run: Callable[[], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Call ``run`` (the last block) and return its output with its queries and keys ``[B, H, N, D/H]``."""
        raise NotImplementedError

    # ------------------------------------------------------------------ what methods and tasks call
    def forward(
        self,
        inputs: Tensor,
        *,
        interventions: Iterable[Intervention] = (),
        taps: Iterable[int] = (),
        global_row: bool = False,
        global_only: bool = False,
        choose: Choose | None = None,
    ) -> TowerOutput:
        """Run the tower.

        Args:
            inputs: images ``[B, C, ...]`` or token ids ``[B, N]``.
            interventions: applied in order at each of their places.
            taps: 0-based blocks whose output is returned as well.
            global_row: also return the last block's attention row of the global token.
            global_only: let the last block compute the global token alone where nothing needs the others; the
                returned sequence then holds one token. About a twelfth of the tower's work saved at 12 blocks.
            choose: with ``global_row``: let the last block carry gradient for the tokens that this chooses, which the
                returned sequence then holds, where the block allows it; ``positions`` of the output tells.
        """
        acts, wanted, tapped = tuple(interventions), frozenset(taps), {}
        sequence = self.embed(inputs)
        for act in acts:
            sequence = act.on_embeddings(sequence, self)
        sequence = self.enter(sequence)
        row: Tensor | None = None
        positions: Tensor | None = None
        after = [act for act in acts if type(act).after_block is not Intervention.after_block]
        every = any(act.mixes_tokens for act in after) or self.depth - 1 in wanted
        mask, masked = self.attention_mask(sequence), sequence
        for index in range(self.depth):
            for act in acts:
                sequence = act.before_block(index, sequence, self)
            if sequence.keep is not masked.keep or sequence.tokens.shape != masked.tokens.shape:
                mask, masked = self.attention_mask(sequence), sequence
            before = sequence
            if index == self.depth - 1 and global_row:
                chosen = None if every or after else choose
                sequence, row, positions = self._last_with_row(before, mask, chosen)
            elif index == self.depth - 1 and global_only and not every:
                before, sequence = self._last_for_global(before, mask)
            else:
                sequence = before.with_tokens(self._run(self._block, index, before.tokens, mask))
            for act in acts:
                sequence = act.after_block(index, before, sequence, self)
            if index in wanted:
                tapped[index] = self.tap(sequence)
        return TowerOutput(sequence.with_tokens(self.final_norm(sequence.tokens)), tapped, row, positions)

    def pool(self, sequence: TokenSequence) -> Tensor:
        """Return the global token ``[B, D]``, as it is."""
        if isinstance(sequence.pooled_at, Tensor):
            return tokens_at(sequence.tokens, sequence.pooled_at)
        return sequence.tokens[:, sequence.pooled_at]

    def features(self, inputs: Tensor, *, interventions: Iterable[Intervention] = ()) -> Tensor:
        """Return pooled, projected features ``[B, E]``, not normalised: what open_clip's encode functions return.

        The last block computes the global token alone, so they are equal to the library's up to rounding;
        :meth:`forward` without ``global_only`` has the library's bits.
        """
        output = self.forward(inputs, interventions=interventions, global_only=True)
        return self.project(self.head_norm(self.pool(output.sequence)))

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Let torch.compile translate the blocks when they first run with gradient, all but an opened last one.

        Deltas are inside a block and interventions between blocks, so both work as before. Another set of deltas and
        the second text length are translated once more; other lengths and other batch sizes, above one, are not.

        Random masks are drawn inside kernels: others than without compilation, but from torch's seed, so that the same
        run, a block that is computed again and a part of a batch that is passed again draw the same.

        Args:
            backend: of torch.compile. "inductor" needs a C++ compiler or a GPU, "aot_eager" neither, nor does it gain.
        """
        config = torch._dynamo.config
        config.skip_nnmodule_hook_guards = False  # deltas are hooks: another one is another block
        config.recompile_limit = max(config.recompile_limit, 8 * self.depth)  # counted once for all blocks
        self._compiler = backend

    @property
    def compiled(self) -> bool:
        """Whether passes with gradient run compiled blocks."""
        return self._compiler is not None

    # ------------------------------------------------------------------ internals
    def _block(self, index: int, tokens: Tensor, mask: Any) -> Tensor:
        """Run a block, compiled where that was asked for; without gradient, as in evaluation, always as it is."""
        if self._compiler is None or not torch.is_grad_enabled():
            return self.run_block(index, tokens, mask)
        for values in (tokens, mask):
            if isinstance(values, Tensor):  # half a batch, after a lack of memory, is no other program
                torch._dynamo.maybe_mark_dynamic(values, 0)
        return _compiled(self._compiler)(self, index, tokens, mask)

    def _run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a piece of the tower; with checkpointing its inside is computed again on the way back."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(function, *args, use_reentrant=False)
        return function(*args)

    def _last_for_global(self, sequence: TokenSequence, mask: Any) -> tuple[TokenSequence, TokenSequence]:
        """Return input and output of the last block for the global token alone."""
        index, at = self.depth - 1, sequence.global_at()[:, None]
        before = TokenSequence(tokens_at(sequence.tokens, at), None, pooled_at=0)

        def block(tokens: Tensor) -> Tensor:
            if not self.opens(index):
                return tokens_at(self.run_block(index, tokens, mask), at)
            parts = self.queries_keys_values(index, tokens, at)
            return self.finish_block(index, tokens_at(tokens, at), *parts, self.mask_at(mask, at))

        return before, before.with_tokens(self._run(block, sequence.tokens))

    def _last_with_row(
        self, sequence: TokenSequence, mask: Any, choose: Choose | None
    ) -> tuple[TokenSequence, Tensor, Tensor | None]:
        """Run the last block; return its output, the global token's row, and what was chosen.

        Attention output, MLP and final norm run twice with ``choose``: for all tokens without gradient, to choose by
        them, and for the chosen ones. Queries, keys and values, which every token adds to, are computed once.
        """
        index, tokens = self.depth - 1, sequence.tokens
        if choose is None or not self.opens(index) or self._draws(index):
            tokens, row = self._run(self._block_with_row, index, sequence, mask)
            return sequence.with_tokens(tokens), row, None
        queries, keys, values = self._run(self.queries_keys_values, index, tokens)
        row = self._row(queries, keys, sequence)
        with torch.no_grad():
            every = self.finish_block(index, tokens, queries, keys, values, mask)
            positions = choose(sequence.with_tokens(self.final_norm(every)), row)
        torch.clear_autocast_cache()  # weights that were cast without gradient must not serve the pass with it
        chosen = sequence.at(positions)
        few = tokens_at(queries.transpose(1, 2), positions).transpose(1, 2)
        mask = self.mask_at(mask, positions)
        after = self._run(self.finish_block, index, chosen.tokens, few, keys, values, mask)
        return chosen.with_tokens(after), row, positions

    def _draws(self, index: int) -> bool:
        """Return whether the second step of block ``index`` draws random numbers, so that it must not run twice.

        A delta says so by an attribute ``draws``; without one it counts as drawing while it trains.
        """
        after = [delta for site in ("o", "up", "down") for delta in self.deltas_at(index, site)]
        return any(module.training for module in self.blocks[index].modules()) or any(
            getattr(delta, "draws", delta.training) for delta in after
        )

    def _block_with_row(self, index: int, sequence: TokenSequence, mask: Any) -> tuple[Tensor, Tensor]:
        if self.opens(index):
            queries, keys, values = self.queries_keys_values(index, sequence.tokens)
            tokens = self.finish_block(index, sequence.tokens, queries, keys, values, mask)
        else:
            tokens, queries, keys = self.last_queries_and_keys(
                lambda: self.run_block(index, sequence.tokens, mask)
            )
        return tokens, self._row(queries, keys, sequence)

    def _row(self, queries: Tensor, keys: Tensor, sequence: TokenSequence) -> Tensor:
        """Return the row of :class:`TowerOutput` from queries and keys ``[B, H, N, D/H]``."""
        query = tokens_at(queries.transpose(1, 2), sequence.global_at())
        with full_precision(query.device):  # a rounded score can pick another neighbour
            query, keys = at_least_fp32(query), at_least_fp32(keys)
            scores = torch.einsum("bhd,bhnd->bhn", query, keys) / query.shape[-1] ** 0.5
            return self.row_of_scores(scores, sequence)


def _run_block(tower: Tower, index: int, tokens: Tensor, mask: Any) -> Tensor:
    return tower.run_block(index, tokens, mask)


@functools.cache
def _compiled(backend: str) -> Callable[..., Tensor]:
    """Return the running of a block, compiled; one for all towers: those of one form share what was translated."""
    return torch.compile(_run_block, backend=backend)


class TextTower(Tower):
    """What text towers share: a pad id, a longest text, and the words of a prompt.

    Attributes:
        context_length: longest token sequence the tower was trained for, start and end tokens included.
        pad_id: id of the padding token.
        attends_padding: whether attention sees padding, so that texts keep their padded length.
    """

    kind = "text"
    attends_padding: bool = False
    context_length: int
    pad_id: int

    @abstractmethod
    def word_embeddings(self, token_ids: Tensor) -> Tensor:
        """Return the rows of the word table, ``[..., D]``: before positions, token types and LayerNorm."""

    @abstractmethod
    def lengths(self, token_ids: Tensor) -> Tensor:
        """Return the number of real tokens of every row, ``[B]``, start and end tokens included."""

    def row_of_scores(self, scores: Tensor, sequence: TokenSequence) -> Tensor:
        """Return the head mean of the probabilities; what is not kept gets exactly 0."""
        if sequence.keep is not None:
            scores = scores.masked_fill(~sequence.keep[:, None, :], torch.finfo(scores.dtype).min)
        return scores.softmax(dim=-1).mean(dim=1)

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
        # not short[cut, -1] = ...: a GPU would be waited for, to know how many rows a mask chooses
        short[:, -1] = torch.where(lengths > room, last[:, 0], short[:, -1])
        return short


class ImageTower(Tower):
    """What image towers share: a patch grid.

    Attributes:
        grid: patches (h, w), of a volume (t, h, w). image_size: pixels or voxels the tower expects.
    """

    kind = "image"
    grid: tuple[int, ...]
    image_size: tuple[int, ...]

    def check_changeable(self) -> None:  # noqa: B027  (most towers have an encoder)
        """Raise BenchmarkError where there is no encoder that a method could change."""

    def tap(self, sequence: TokenSequence) -> Tensor:
        """Return the patch tokens as a map ``[B, D, *grid]``, without class token and inserted tokens."""
        patches = sequence.tokens[:, sequence.content_at : sequence.content_at + math.prod(self.grid)]
        return patches.transpose(1, 2).unflatten(2, self.grid)

    def patch_features(self, inputs: Tensor, *, interventions: Iterable[Intervention] = ()) -> Tensor:
        """Return projected features ``[B, N, E]`` of all patches, row by row of the grid, not normalised.

        Each patch takes the way of the global token: final norm, what the library does before projecting, projection.
        """
        patches = self.tap(self.forward(inputs, interventions=interventions).sequence)
        return self.project(self.head_norm(patches.flatten(2).transpose(1, 2)))

    def row_of_scores(self, scores: Tensor, sequence: TokenSequence) -> Tensor:
        """Return the head mean of the scaled scores, before softmax."""
        return scores.mean(dim=1)


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
