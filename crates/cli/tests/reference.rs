//! docs/reference/commands.md names every command and every option. Options of several commands
//! used to be in no document: who read the guide could not know of them.

use std::fs;

use ubcache_daemon::attributes::{Attribute, OF_SETS, OF_VOLUMES, Values};
use ubcache_daemon::default_of;

#[test]
fn every_command_and_option_is_in_the_reference() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/commands.md");
    let text = fs::read_to_string(path).expect("the reference");
    let mut root = ubcache_cli::command_line();
    root.build();
    let mut missing = Vec::new();
    let shown = |command: &&clap::Command| !command.is_hide_set() && command.get_name() != "help";
    let mut commands = Vec::new();
    for command in root.get_subcommands().filter(shown) {
        commands.push((command.get_name().to_owned(), command));
        for inner in command.get_subcommands().filter(shown) {
            commands.push((format!("{} {}", command.get_name(), inner.get_name()), inner));
        }
    }
    for (name, command) in commands {
        let section = text.split(&format!("\n## `ubcache {name}`\n")).nth(1);
        let section = section.map(|rest| rest.split("\n## ").next().unwrap_or(rest));
        let Some(section) = section else {
            missing.push(name);
            continue;
        };
        for option in command.get_arguments().filter(|option| !option.is_hide_set()) {
            let Some(long) = option.get_long().filter(|long| *long != "help") else { continue };
            let ends = ["`", " "].map(|end| format!("`--{long}{end}"));
            if !ends.iter().any(|named| section.contains(named.as_str())) {
                missing.push(format!("{name} --{long}"));
            }
        }
    }
    let advice = "cargo run -p ubcache-cli --example commands > docs/reference/commands.md";
    assert!(missing.is_empty(), "not in {path}: {missing:?}; run: {advice}");
}

/// Rows of attributes as they stand in docs/reference/attributes.md.
fn rows(attributes: &[Attribute]) -> Vec<String> {
    let row = |attribute: &Attribute| {
        let unit = match attribute.values {
            Values::Number(..) | Values::Size(..) => attribute.unit.word(),
            _ => "",
        };
        let cells = [
            format!("`{}`", attribute.name),
            default_of(attribute).unwrap_or_default(),
            attribute.range(),
            unit.to_owned(),
            attribute.kept.word().to_owned(),
            attribute.effect.to_owned(),
        ];
        cells.iter().fold(String::new(), |row, cell| {
            row + "| " + cell + if cell.is_empty() { "" } else { " " }
        }) + "|"
    };
    attributes.iter().map(row).collect()
}

/// The tables of docs/reference/attributes.md are those of the engine.
#[test]
fn attributes_are_in_the_reference_as_the_engine_has_them() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/attributes.md");
    let text = fs::read_to_string(path).expect("the reference");
    let listed: Vec<&str> = text.lines().filter(|line| line.starts_with("| `")).collect();
    let expected: Vec<String> = rows(OF_VOLUMES).into_iter().chain(rows(OF_SETS)).collect();
    assert_eq!(listed, expected, "the rows of {path} should be:\n{}", expected.join("\n"));
}
