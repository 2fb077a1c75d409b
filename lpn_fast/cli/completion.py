"""Complete commands in a shell.

Print a script that teaches a shell to complete lpn-fast's commands, their options and the values an option may
have; everything else is completed as a file name. Needs shtab (extra [completion]).

examples:
  source <(lpn-fast completion bash)                                  for this shell
  lpn-fast completion bash >> ~/.bashrc                               for every bash to come
  lpn-fast completion zsh > "${fpath[1]}/_lpn-fast"                   for every zsh
  lpn-fast completion fish > ~/.config/fish/completions/lpn-fast.fish
"""

from ..contract import needed


def add_arguments(parser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))


def run(args) -> int:
    from . import build_parser  # which imports this module

    shtab = needed("shtab", "completion", "completion")
    parser = build_parser()
    (commands,) = parser._subparsers._group_actions  # argparse has no public list of commands, nor of their options
    for command in commands.choices.values():
        for action in command._actions:
            if action.choices is None and action.nargs != 0:
                action.complete = shtab.FILE
    print(shtab.complete(parser, args.shell))
    return 0
