"""Tiny models of the golden cases, opened through the drop-in, for the tests of checkpoints."""

from dataclasses import dataclass
from pathlib import Path

import torch

from flamboyance import create_model_and_transforms
from tests.parity.rebuild import CASES, build, pixels, read_case


@dataclass
class Golden:
    """A case on disk: directories `vision`, `language`, `tokenizer`; and OpenFlamingo's state dict for it."""

    case: dict
    directory: Path
    state: dict[str, torch.Tensor]

    @property
    def backbones(self) -> dict[str, str]:
        return {part: str(self.directory / part) for part in ("language", "vision", "tokenizer")}

    def model(self, cross_attn_every_n_layers=None, load=True, **options):
        """A new model of this case, with its weights."""
        torch.manual_seed(0)
        model, _, _ = create_model_and_transforms(
            str(self.directory / "vision"),
            None,
            str(self.directory / "language"),
            str(self.directory / "tokenizer"),
            cross_attn_every_n_layers=cross_attn_every_n_layers or self.case["cross_attn_every_n_layers"],
            **options,
        )
        if load:
            model.load_state_dict(self.state)
        return model

    def save(self, file: Path, state=None) -> Path:
        torch.save(self.state if state is None else state, file)
        return file

    def layers(self) -> str:
        return f"lang_encoder.{self.case['decoder_layers']}"

    @torch.no_grad()
    def logits(self, model) -> torch.Tensor:
        """Of the case's first row, by the model's own interface or the drop-in's."""
        ids = torch.tensor(self.case["rows"][:1]).to(model.device)
        media = model.encode_media(pixels(self.case)[:1].to(model.device))
        return model(input_ids=ids, media=media).logits


def golden(name: str, directory: Path) -> Golden:
    """`name`: of a file in tests/parity/cases."""
    case = read_case(next(file for file in CASES if file.stem == name))
    return Golden(case, directory, build(case, directory))
