//! `--mutant`: which rules of the engine are switched off.

use std::process::ExitCode;

use ubcache_engine::Rules;

use crate::cli::Cli;

#[cfg(not(feature = "mutants"))]
const NOT_HERE: &str = "rules of the engine can't be switched off in this build: \
                        cargo run --release -p ubcache-sim --features mutants -- --mutant NAME …";

/// The rules that the command line leaves on.
#[cfg(not(feature = "mutants"))]
pub fn rules_of(cli: &Cli) -> Result<Rules, String> {
    match cli.mutant {
        Some(_) => Err(NOT_HERE.to_owned()),
        None => Ok(Rules::default()),
    }
}

/// The rules that the command line leaves on.
#[cfg(feature = "mutants")]
pub fn rules_of(cli: &Cli) -> Result<Rules, String> {
    let Some(name) = &cli.mutant else { return Ok(Rules::default()) };
    let mutant: Result<ubcache_engine::Mutant, _> = name.parse();
    mutant.map(Rules::from).map_err(|error| format!("{error}; --mutant list shows them"))
}

/// Prints the names, the rules, and the statements that a mutant breaks.
#[cfg(not(feature = "mutants"))]
pub fn list() -> ExitCode {
    eprintln!("ubcache-simulate: {NOT_HERE}");
    ExitCode::from(2)
}

/// Prints the names, the rules, and the statements that a mutant breaks.
#[cfg(feature = "mutants")]
pub fn list() -> ExitCode {
    for mutant in ubcache_engine::Mutant::ALL {
        println!("{:32} {:20} {}", mutant.name(), mutant.rule(), mutant.what());
    }
    ExitCode::SUCCESS
}
