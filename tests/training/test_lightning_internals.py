"""What is used of Lightning beyond its public interface: that it is there, and with which versions."""

import ast
import inspect
import re
from importlib.metadata import requires, version
from pathlib import Path

import lightning
import pytest
from packaging.specifiers import SpecifierSet

from ssamba.training import lightning_internals
from ssamba.training.lightning_internals import TRIED, leave_signals_alone, set_progress

PACKAGE = Path(lightning_internals.__file__).parents[1]
PRIVATE = {"_signal_connector", "_batches_that_stepped", "epoch_loop", "fit_loop", "val_loop", "optim_progress"}


def test_the_package_asks_for_the_versions_that_were_tried() -> None:
    (asked,) = [text for text in requires("ssamba") or () if re.match(r"lightning\b", text)]
    assert SpecifierSet(asked.removeprefix("lightning")) == SpecifierSet(TRIED)
    assert version("lightning") in SpecifierSet(TRIED)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_other_file_uses_them(path: Path) -> None:
    used = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    if path.name == Path(lightning_internals.__file__).name:
        assert used >= PRIVATE
    else:
        assert not used & PRIVATE


def test_a_trainer_stands_where_it_is_set() -> None:
    trainer = lightning.Trainer(
        max_steps=7, accelerator="cpu", logger=False, enable_checkpointing=False, accumulate_grad_batches=2
    )
    set_progress(trainer, 7, validation_due=True)
    loop = trainer.fit_loop.epoch_loop
    assert trainer.global_step == 7 and loop.batch_progress.total.ready == 14
    assert loop._batches_that_stepped == 7 and not loop.done and loop.max_steps == 8


def test_lightning_registers_no_handler_of_its_own() -> None:
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    register = trainer._signal_connector.register_signal_handlers
    assert inspect.ismethod(register)
    leave_signals_alone(trainer)
    assert trainer._signal_connector.register_signal_handlers is not register
    assert trainer._signal_connector.register_signal_handlers() is None  # type: ignore[func-returns-value]
