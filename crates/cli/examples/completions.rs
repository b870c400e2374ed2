//! Writes completions for shells into a directory: `cargo xtask package`.

use std::path::PathBuf;

use clap_complete::{Shell, generate_to};

fn main() -> std::io::Result<()> {
    let directory = std::env::args_os().nth(1).unwrap_or_else(|| "target/completions".into());
    let directory = PathBuf::from(directory);
    std::fs::create_dir_all(&directory)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut ubcache_cli::command_line(), "ubcache", &directory)?;
    }
    Ok(())
}
