//! Measures everything and writes docs/generated/performance.md.

use std::process::Command;

/// Builds what is shipped and measures it.
pub fn run(cargo: &str, arguments: &[String]) -> bool {
    let build = ["build", "--release", "-p", "ubcache-cli", "-p", "ubcache-bench"];
    if !Command::new(cargo).args(build).status().is_ok_and(|status| status.success()) {
        return false;
    }
    let mut suite = Command::new(cargo);
    suite.args(["run", "--release", "--quiet", "-p", "ubcache-bench", "--", "suite"]);
    if !arguments.iter().any(|argument| argument == "--only") {
        suite.args(["--write", "docs/generated"]);
    }
    suite.args(arguments).status().is_ok_and(|status| status.success())
}
