//! `--mutant`: which rule of the engine is broken.

use std::process::ExitCode;

use ubcache_engine::Mutation;

use crate::cli::Cli;

#[cfg(not(feature = "mutants"))]
const NOT_HERE: &str = "rules of the engine can't be broken in this build: \
                        cargo run --release -p ubcache-sim --features mutants -- --mutant NAME …";

/// The mutation that the command line asks for.
#[cfg(not(feature = "mutants"))]
pub fn mutation_of(cli: &Cli) -> Result<Mutation, String> {
    match cli.mutant {
        Some(_) => Err(NOT_HERE.to_owned()),
        None => Ok(Mutation::default()),
    }
}

/// The mutation that the command line asks for.
#[cfg(feature = "mutants")]
pub fn mutation_of(cli: &Cli) -> Result<Mutation, String> {
    let Some(name) = &cli.mutant else { return Ok(Mutation::default()) };
    let mutant: Result<ubcache_engine::Mutant, _> = name.parse();
    mutant.map(Mutation::from).map_err(|error| format!("{error}; --mutant list shows them"))
}

/// Prints the names, the rules, and what becomes of them.
#[cfg(not(feature = "mutants"))]
pub fn list() -> ExitCode {
    eprintln!("ubcache-simulate: {NOT_HERE}");
    ExitCode::from(2)
}

/// Prints the names, the rules, and what becomes of them.
#[cfg(feature = "mutants")]
pub fn list() -> ExitCode {
    for mutant in ubcache_engine::Mutant::ALL {
        println!("{:32} {:20} {}", mutant.name(), mutant.rule(), mutant.what());
    }
    ExitCode::SUCCESS
}
