//! Prints docs/reference/commands.md: `cargo run -p ubcache-cli --example commands`.

use clap::{Arg, Command};

/// Width of the text.
const COLUMNS: usize = 100;

const HEAD: &str = "\
# Commands and options

Written by `cargo run -p ubcache-cli --example commands`. `ubcache help COMMAND` prints the same,
with examples, and `cargo xtask man` writes manual pages. Sizes take the suffixes k, M, G and T
(powers of 1024).
";

fn main() {
    let mut root = ubcache_cli::command_line();
    root.build();
    println!("{HEAD}");
    for (name, command) in all_commands(&root) {
        println!("## `ubcache {name}`\n");
        let about = command.get_long_about().or(command.get_about());
        let about = about.map(ToString::to_string).unwrap_or_default();
        let mut sentences: Vec<String> =
            about.split("\n\n").map(|part| part.trim_end_matches('.').to_owned()).collect();
        let aliases = command.get_visible_aliases();
        sentences.extend(aliases.map(|alias| format!("Also `ubcache {alias}`")));
        println!("{}.\n", wrapped(&sentences.join(". ")));
        let shown = |arg: &&Arg| !arg.is_hide_set() && arg.get_id() != "help";
        let mut rows = command.get_arguments().filter(shown).map(row).peekable();
        if rows.peek().is_some() {
            println!("| option | meaning |\n|---|---|");
            rows.for_each(|row| println!("{row}"));
            println!();
        }
    }
}

/// All commands by their names, those of a command behind it.
fn all_commands(root: &Command) -> Vec<(String, &Command)> {
    let mut all = Vec::new();
    for command in root.get_subcommands().filter(|command| is_shown(command)) {
        all.push((command.get_name().to_owned(), command));
        for inner in command.get_subcommands().filter(|command| is_shown(command)) {
            all.push((format!("{} {}", command.get_name(), inner.get_name()), inner));
        }
    }
    all
}

fn is_shown(command: &Command) -> bool {
    !command.is_hide_set() && command.get_name() != "help"
}

fn row(arg: &Arg) -> String {
    let takes_values = arg.get_num_args().is_some_and(|count| count.takes_values());
    let value = match arg.get_value_names() {
        Some([name, ..]) if takes_values => format!(" {name}"),
        _ => String::new(),
    };
    let name = match (arg.get_short(), arg.get_long()) {
        (Some(short), Some(long)) => format!("`-{short}`, `--{long}{value}`"),
        (Some(short), None) => format!("`-{short}{value}`"),
        (None, Some(long)) => format!("`--{long}{value}`"),
        (None, None) => format!("`{}`", value.trim()),
    };
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default().replace('\n', " ");
    let values = arg.get_possible_values();
    let values = values.iter().filter(|value| takes_values && !value.is_hide_set());
    let values: Vec<String> = values
        .map(|value| match value.get_help() {
            Some(help) => format!("`{}` ({help})", value.get_name()),
            None => format!("`{}`", value.get_name()),
        })
        .collect();
    let values = if values.is_empty() { String::new() } else { format!(": {}", values.join(", ")) };
    let defaults = arg.get_default_values().iter().map(|value| value.to_string_lossy());
    let default = match defaults.collect::<Vec<_>>().join(" ") {
        default if takes_values && !default.is_empty() => format!(" [default: {default}]"),
        _ => String::new(),
    };
    format!("| {name} | {}{}{} |", escaped(&help), escaped(&values), escaped(&default))
}

/// The text in lines of at most so many columns as tidy allows.
fn wrapped(text: &str) -> String {
    let (mut lines, mut columns) = (String::new(), 0);
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if columns > 0 {
            let fits = columns + 1 + length <= COLUMNS;
            lines.push(if fits { ' ' } else { '\n' });
            columns = if fits { columns + 1 } else { 0 };
        }
        lines += word;
        columns += length;
    }
    lines
}

/// The text for a cell of a table.
fn escaped(text: &str) -> String {
    text.replace('|', "\\|")
}
