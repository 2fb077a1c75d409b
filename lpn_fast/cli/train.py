"""Train a denoiser (an exact prox) on images.

examples:
  lpn-fast train --data photos --out runs/gray --sigma 0.03
  lpn-fast train --data photos.zip --out runs/any --sigma 0.01 0.1 --steps 20000 --validate val
  lpn-fast train --data photos --out runs/map --sigma 0.1 --loss matching --steps 40000
  lpn-fast train --data photos --out runs/tuned --sigma 0.1 --start runs/gray/model.safetensors \\
      --loss matching --pretrain none                    # fine-tune a denoiser by proximal matching
  lpn-fast train --synthetic dead-leaves --out runs/leaves --sigma 0.1    # nothing to download
  lpn-fast train --config run.toml --seed 3              # flags go before the file
  torchrun --nproc-per-node 2 -m lpn_fast.cli train --config run.toml

The run can be interrupted at any moment; the same command continues it. A configuration file holds the same
names as the flags, with _ for -, in the tables [data], [model] and [schedule]; --data is sources there.
"""

import argparse
import dataclasses
import types
import typing

import torch

from ..networks.registry import FAMILIES, trainable
from ..prior import verify
from ..training.config import TABLES, ModelConfig, choices_of, flag_of, from_dict, merge, read_config
from ..training.denoiser import write_result
from ..training.distributed import current_group, join, launched_by_torchrun, leave
from ..training.run import build_crops, train

METAVARS = {int: "N", float: "X", str: "NAME"}
NO_SETTINGS = ("command", "command_line", "config", "run", "when_interrupted")


class _OneOrSeveral(argparse.Action):
    """One value as it is, several as a list."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, values[0] if len(values) == 1 else values)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One for each entry of a configuration."""
    parser.epilog = f"families:\n{_families()}\n{parser.epilog}"
    parser.argument_default = argparse.SUPPRESS  # what is not given is left to the file, then to the defaults
    parser.set_defaults(when_interrupted="the same command goes on where this one stopped")
    parser.add_argument("--config", metavar="FILE", help="TOML or JSON")
    for table, cls in TABLES.items():
        group, hints = parser.add_argument_group(f"[{table[:-1]}]" if table else "the run"), typing.get_type_hints(cls)
        for f in dataclasses.fields(cls):
            if f.name + "." not in TABLES:
                shown = f" (default {_shown(f.default)})" if _shown(f.default) else ""
                about = (f.metadata["help"] + shown).replace("%", "%%")
                group.add_argument(flag_of(f), dest=table + f.name, help=about, **_arguments(f, hints[f.name]))


def run(args: argparse.Namespace) -> int:
    """Train and verify; 0 when the last step is done and the result is an exact prox, 1 if it is not."""
    config = from_dict(merge(read_config(args.config) if "config" in args else {}, given_by(args)))
    if config.threads:
        torch.set_num_threads(config.threads)
    if launched_by_torchrun():
        config = dataclasses.replace(config, device=str(join(config.device)))
    try:
        model = train(config)
        if not current_group().leads:
            return 0
        holds = True
        if config.verify:
            first = config.data.samples[0] if config.data.samples else 0
            few = dataclasses.replace(config.data, samples=(first, first + 2))  # no more are read for two crops
            sample = build_crops(few, model, pool=2)(2, torch.Generator().manual_seed(0))  # (2, C, crop, crop)
            low, high = config.sigma if isinstance(config.sigma, tuple) else (config.sigma, config.sigma)
            level = (low * high) ** 0.5 if model.is_noise_conditional else None
            report = verify(model, sample.to(config.device), level)
            holds = report.all_hold
            model.card["verified"] = "every property" if holds else f"NOT: {', '.join(p.name for p in report.failed)}"
            print(report)
            write_result(model, config.out)
        print(f"wrote {config.out}/model.safetensors and card.md: {model.card['result']}")
        return 0 if holds else 1
    finally:
        leave()


def _arguments(f: dataclasses.Field, annotation) -> dict:
    """What `add_argument` is to know of a field of that type."""
    kinds = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    kinds = [kind for kind in kinds if kind is not type(None)]
    if kinds == [bool]:
        return {"action": argparse.BooleanOptionalAction}
    arguments = {"choices": choices_of(f), "metavar": f.metadata["metavar"], "type": kinds[0]}
    if typing.get_origin(kinds[-1]) is tuple:
        entries = typing.get_args(kinds[-1])
        arguments |= {"type": entries[0], "nargs": "*" if entries[-1] is ... else len(entries)}
        if len(kinds) > 1:  # a scalar or a tuple
            arguments |= {"nargs": "+", "action": _OneOrSeveral}
    if f.metadata["parse"] is not None:
        arguments["type"] = f.metadata["parse"]
    elif arguments["choices"] is None and arguments["metavar"] is None:
        arguments["metavar"] = METAVARS[arguments["type"]]
    return arguments


def _shown(default) -> str:
    """A default in words; empty where there is nothing to say."""
    if default is None or default is False or default is dataclasses.MISSING:
        return ""
    if isinstance(default, tuple):
        return " ".join(map(str, default))
    return "yes" if default is True else f"{default:g}" if isinstance(default, float) else str(default)


def _families() -> str:
    """The families, each with the flags that it takes, and defaults of its own."""
    fields, lines = {f.name: f for f in dataclasses.fields(ModelConfig)}, []
    for name in trainable():
        family = FAMILIES[name]
        lines.append(f"  {name:<12}{family.summary}\n")
        own = {o: _shown(default) if fields[o].default is None else "" for o, default in family.defaults().items()}
        flags = [f"{flag_of(fields[option])} {default}".strip() for option, default in own.items()]
        lines.append(f"  {'':<12}{' '.join(flags)}\n" if flags else "")
    return "".join(lines)


def given_by(args: argparse.Namespace) -> dict:
    """Values of flags as the tables of a configuration."""
    tables: dict = {}
    for place, value in vars(args).items():
        *table, key = place.split(".")
        if key not in NO_SETTINGS:
            (tables.setdefault(table[0], {}) if table else tables)[key] = value
    return tables
