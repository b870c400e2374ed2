//! Writes the manual pages into a directory: `cargo xtask man`.

use std::io::Write;
use std::path::Path;

use clap::Command;
use clap_mangen::Man;

/// What stands before the examples in the help of a command.
const EXAMPLES: &str = "Example:\n";

fn main() -> std::io::Result<()> {
    let directory = std::env::args().nth(1).unwrap_or_else(|| "target/man".to_owned());
    std::fs::create_dir_all(&directory)?;
    let root = ubcache_cli::command_line();
    // Commands want text that lives as long as the process.
    let version: &'static str = root.get_version().unwrap_or_default().to_owned().leak();
    page(Path::new(&directory), "ubcache", root.clone())?;
    for command in root.get_subcommands().filter(|command| !command.is_hide_set()) {
        let name = format!("ubcache-{}", command.get_name());
        let full = command.clone().bin_name(name.replacen('-', " ", 1)).version(version);
        page(Path::new(&directory), &name, full)?;
    }
    Ok(())
}

/// One page, with its examples in a section of their own.
fn page(directory: &Path, name: &str, command: Command) -> std::io::Result<()> {
    let help = command.get_after_help().map(|help| help.to_string()).unwrap_or_default();
    let (more, examples) =
        help.split_once(EXAMPLES).unwrap_or((&help, "  ubcache check /dev/nvme0n1p4 -B /dev/sdb\n"));
    let command = command.after_help(more.trim_end().to_owned());
    let mut page = Vec::new();
    Man::new(command.name(name.to_owned().leak() as &'static str))
        .title(name.to_uppercase())
        .render(&mut page)?;
    write!(page, ".SH EXAMPLES\n.nf\n{}\n.fi\n", escaped(examples.trim_end()))?;
    std::fs::write(directory.join(format!("{name}.1")), page)
}

/// Text of which roff takes nothing for a command.
fn escaped(text: &str) -> String {
    let lines = text.lines().map(|line| line.replace('\\', "\\\\").replace('-', "\\-"));
    lines
        .map(|line| if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line })
        .collect::<Vec<_>>()
        .join("\n")
}
