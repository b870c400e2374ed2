//! `ubcache-simulate`: runs drawn plans against the engine, or against toys, and says what broke.

mod cli;
mod hunt;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match hunt::main(cli::Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("ubcache-simulate: {error}");
            ExitCode::from(2)
        }
    }
}
