//! Writes the manual pages into a directory: `cargo xtask man`.

use std::io::Write;
use std::path::Path;

use clap::Command;
use clap_mangen::Man;

/// Heading before the examples in the help of a command.
const EXAMPLES: &str = "Example:\n";

fn main() -> std::io::Result<()> {
    let directory = std::env::args().nth(1).unwrap_or_else(|| "target/man".to_owned());
    std::fs::create_dir_all(&directory)?;
    let root = ubcache_cli::command_line();
    // Text of a command has to live as long as the process.
    let version: &'static str = root.get_version().unwrap_or_default().to_owned().leak();
    page(Path::new(&directory), "ubcache", root.clone().disable_help_subcommand(true))?;
    for command in root.get_subcommands().filter(|command| !command.is_hide_set()) {
        let name = format!("ubcache-{}", command.get_name());
        let full = command.clone().bin_name(name.replacen('-', " ", 1)).version(version);
        page(Path::new(&directory), &name, full)?;
        for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
            let full = inner.clone().bin_name(format!(
                "{} {}",
                name.replacen('-', " ", 1),
                inner.get_name()
            ));
            let name = format!("{name}-{}", inner.get_name());
            page(Path::new(&directory), &name, full.version(version))?;
        }
    }
    Ok(())
}

/// One page. The help that comes after the options is the description; its examples have a section
/// of their own.
fn page(directory: &Path, name: &str, mut command: Command) -> std::io::Result<()> {
    let help = command.get_after_help().map(|help| help.to_string()).unwrap_or_default();
    let (more, examples) = help
        .split_once(EXAMPLES)
        .unwrap_or((&help, "  ubcache check /dev/nvme0n1p4 -B /dev/sdb\n"));
    let usage = command.render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").trim().to_owned();
    let about = command
        .get_long_about()
        .or(command.get_about())
        .map(ToString::to_string)
        .unwrap_or_default();
    let is_root = name == "ubcache";
    let man = Man::new(command.name(name.to_owned().leak() as &'static str))
        .title(name.to_uppercase())
        .date(std::env::var("UBCACHE_DATE").unwrap_or_else(|_| "2026-11-29".to_owned()));
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    write!(
        page,
        ".SH SYNOPSIS\n{}\n.SH DESCRIPTION\n{}",
        escaped(&usage),
        filled(&format!("{about}."))
    )?;
    // Lists keep their lines.
    let (prose, lists) = if is_root { ("", more) } else { (more, "") };
    page.extend(filled(prose).into_bytes());
    man.render_options_section(&mut page)?;
    if is_root {
        man.render_subcommands_section(&mut page)?;
        for list in lists.split("\n\n").filter(|list| !list.trim().is_empty()) {
            let (title, lines) = list.trim_start().split_once('\n').unwrap_or((list, ""));
            let title = title.trim_end_matches(':').to_uppercase();
            write!(page, ".SH {}\n.nf\n{}\n.fi\n", escaped(&title), escaped(lines.trim_end()))?;
        }
    }
    write!(page, ".SH EXAMPLES\n.nf\n{}\n.fi\n", escaped(examples.trim_end()))?;
    if !is_root {
        write!(page, ".SH SEE ALSO\n.BR ubcache (1)\n")?;
    }
    let page = String::from_utf8(page).map_err(std::io::Error::other)?;
    // An empty line is a space of its own, and a heading begins a paragraph: no break beside them.
    let page = page.replace(".br\n\n.br\n", "\n").replace("DESCRIPTION\n.PP\n", "DESCRIPTION\n");
    std::fs::write(directory.join(format!("{name}.1")), page)
}

/// Paragraphs.
fn filled(text: &str) -> String {
    let paragraphs = text.split("\n\n").map(str::trim).filter(|paragraph| !paragraph.is_empty());
    paragraphs.map(|paragraph| format!(".PP\n{}\n", escaped(paragraph))).collect()
}

/// Text of which roff takes nothing for a command.
fn escaped(text: &str) -> String {
    let lines = text.lines().map(|line| line.replace('\\', "\\\\").replace('-', "\\-"));
    lines
        .map(|line| if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line })
        .collect::<Vec<_>>()
        .join("\n")
}
