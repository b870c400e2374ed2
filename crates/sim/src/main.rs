//! `ubcache-simulate`: runs drawn plans against the engine, or against fake systems, and says what
//! broke.

mod cli;
mod mutant;
mod run_seeds;
mod tables;

use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    if cli.mutant.as_deref() == Some("list") {
        return mutant::list();
    }
    match run_seeds::main(cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("ubcache-simulate: {error}");
            ExitCode::from(2)
        }
    }
}
