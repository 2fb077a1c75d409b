"""`lpn-fast completion`: what a shell needs to complete commands, options and file names.

The script is made from the commands' own parsers, so it knows what they know.
"""

import argparse

from . import options

DESCRIPTION = """\
Print a script that teaches a shell to complete lpn-fast's commands, their options and the values an option may
have; everything else is completed as a file name."""

EXAMPLES = """\
  source <(lpn-fast completion bash)                                  for this shell
  lpn-fast completion bash >> ~/.bashrc                               for every bash to come
  lpn-fast completion zsh > "${fpath[1]}/_lpn-fast"                   for every zsh
  lpn-fast completion fish > ~/.config/fish/completions/lpn-fast.fish"""

PROGRAM = "lpn-fast"

BASH = """\
_lpn_fast() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} command=${{COMP_WORDS[1]}} words=
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{commands}" -- "$current"))
        return
    fi
    case "$command $previous" in
{values}
        *) case "$current" in
            -*) case "$command" in
{options}
                esac;;
           esac;;
    esac
    if [ -n "$words" ]; then
        COMPREPLY=($(compgen -W "$words" -- "$current"))
    else
        compopt -o filenames 2>/dev/null
        local IFS=$'\\n'
        COMPREPLY=($(compgen -f -- "$current"))
    fi
}}
complete -F _lpn_fast {program}
"""

ZSH = """\
#compdef {program}
autoload -U +X bashcompinit && bashcompinit
"""


def add_parser(subparsers) -> None:
    """Add the command to the parser's commands."""
    parser = options.add_command(subparsers, "completion", "complete commands in a shell", DESCRIPTION, EXAMPLES)
    parser.add_argument("shell", choices=tuple(SCRIPTS))
    parser.set_defaults(parsers=subparsers.choices)  # filled as the other commands are added


def run(args) -> int:
    """Print the script; the exit code."""
    print(SCRIPTS[args.shell](args.parsers), end="")
    return 0


def _options(parser: argparse.ArgumentParser) -> list[tuple[str, str, tuple[str, ...]]]:
    """(option, help, values it may have) of a command."""
    found = []
    for action in parser._actions:  # argparse has no public list of them
        text = "" if action.help is None or action.help is argparse.SUPPRESS else action.help.replace("%%", "%")
        values = tuple(map(str, action.choices or ()))
        found += [(option, text.split(" (default")[0], values) for option in action.option_strings]
    return found


def _positional_values(parser: argparse.ArgumentParser) -> tuple[str, ...]:
    """The words that a command takes as its argument, where there are a few."""
    return tuple(str(v) for action in parser._actions if not action.option_strings for v in action.choices or ())


def _bash(parsers: dict[str, argparse.ArgumentParser]) -> str:
    values, names = [], []
    for command, parser in parsers.items():
        known = _options(parser)
        for option, _, choices in known:
            if choices:
                values.append(f'        "{command} {option}") words="{" ".join(choices)}";;')
        if choices := _positional_values(parser):
            values.append(f'        "{command} {command}") words="{" ".join(choices)}";;')
        names.append(f'                {command}) words="{" ".join(option for option, _, _ in known)}";;')
    return BASH.format(commands=" ".join(parsers), values="\n".join(values), options="\n".join(names), program=PROGRAM)


def _zsh(parsers: dict[str, argparse.ArgumentParser]) -> str:
    return ZSH.format(program=PROGRAM) + _bash(parsers)


def _fish(parsers: dict[str, argparse.ArgumentParser]) -> str:
    def quoted(text: str) -> str:
        return "'" + " ".join(text.split()).replace("\\", "\\\\").replace("'", "\\'") + "'"

    lines = []
    for command, parser in parsers.items():
        lines.append(f"complete -c {PROGRAM} -f -n __fish_use_subcommand -a {command}")
        here = f"-n '__fish_seen_subcommand_from {command}'"
        if choices := _positional_values(parser):
            lines.append(f"complete -c {PROGRAM} -f {here} -a {quoted(' '.join(choices))}")
        for option, text, choices in _options(parser):
            flag = f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
            among = f" -x -a {quoted(' '.join(choices))}" if choices else ""
            lines.append(f"complete -c {PROGRAM} {here} {flag} -d {quoted(text)}{among}")
    return "\n".join(lines) + "\n"


SCRIPTS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
