//! Programs of tests: cargo builds all of them, and some run at a time.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use serde_json::Value;

use super::carried_out;
use super::report::Report;

/// A program that cargo has built from tests.
pub struct Program {
    name: String,
    file: PathBuf,
    /// Directory of its package, in which cargo runs it too.
    package: PathBuf,
}

/// Builds all tests of the workspace. Messages of the compiler are shown.
pub fn build(cargo: &str) -> Result<Vec<Program>, String> {
    let mut command = Command::new(cargo);
    command.args(["test", "--workspace", "--no-run"]);
    command.arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
    let output = command.output().map_err(|why| format!("can't run {cargo}: {why}"))?;
    if !output.status.success() {
        return Err(format!("cargo test --workspace --no-run: {}", output.status));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let messages = text.lines().filter_map(|line| serde_json::from_str(line).ok());
    let mut programs: Vec<Program> = messages.filter_map(|message| program(&message)).collect();
    programs.sort_by(|one, other| one.name.cmp(&other.name));
    if programs.is_empty() { Err("cargo names no program".to_owned()) } else { Ok(programs) }
}

/// The program that a message of cargo is about, if it is one of tests.
fn program(message: &Value) -> Option<Program> {
    let file = message["executable"].as_str().filter(|_| message["profile"]["test"] == true)?;
    let package = Path::new(message["manifest_path"].as_str()?).parent()?;
    let kind = message["target"]["kind"][0].as_str()?;
    let target = message["target"]["name"].as_str()?;
    let name = format!("{} ({kind} {target})", package.file_name()?.to_string_lossy());
    Some(Program { name, file: file.into(), package: package.to_owned() })
}

/// Runs all of them, one for each processor at a time.
pub fn run(programs: &[Program], report: &Report) {
    let next = Mutex::new(programs.iter());
    let lanes = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8);
    std::thread::scope(|scope| {
        for _ in 0..lanes {
            scope.spawn(|| {
                while let Some(program) = taken(&next) {
                    let mut command = Command::new(&program.file);
                    command.args(["--nocapture", "--test-threads=2"]);
                    command.current_dir(&program.package);
                    command.env("CARGO_MANIFEST_DIR", &program.package);
                    report.say(&format!("xtask: begins: {}", program.name));
                    carried_out(&program.name, command, report);
                }
            });
        }
    });
}

fn taken<'a>(next: &Mutex<impl Iterator<Item = &'a Program>>) -> Option<&'a Program> {
    next.lock().ok()?.next()
}
