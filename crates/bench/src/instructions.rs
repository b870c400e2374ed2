//! Instructions of a load, counted by callgrind: the same on every machine, but not with every
//! compiler.

use std::path::Path;
use std::process::Command;

use crate::engine::Load;

/// Instructions of a request of a guest, as [`count`], which makes so many at a time.
pub fn count_of_guest(requests: u64, depth: u16, out: Option<&Path>) -> Result<f64, String> {
    count_in_batches("guest", requests, u64::from(depth), out)
}

/// Instructions of a request by NBD, the same way.
pub fn count_served(requests: u64, depth: u64, out: Option<&Path>) -> Result<f64, String> {
    count_in_batches("served", requests, depth, out)
}

fn count_in_batches(
    command: &str,
    requests: u64,
    depth: u64,
    out: Option<&Path>,
) -> Result<f64, String> {
    let requests = requests / depth * depth;
    under_callgrind(requests, out, |bench| {
        bench.args([command, "--requests", &requests.to_string()]);
        bench.args(["--depth", &depth.to_string()]);
    })
}

/// Runs this program, which has to be `ubcache-bench`, again under callgrind. Only what happens in
/// [`measured_phase`](crate::engine::measured_phase) counts. Gives the instructions of a request;
/// `options` are more options of
/// the command. Callgrind's own output is left in `out`.
pub fn count(
    load: Load,
    working_set_bytes: u64,
    requests: u64,
    options: &[String],
    out: Option<&Path>,
) -> Result<f64, String> {
    under_callgrind(requests, out, |command| {
        command
            .args(["engine", "--slices", "1", "--json", "--load", load.name()])
            .args(["--requests", &requests.to_string()])
            .args(["--working-set", &working_set_bytes.to_string()])
            .args(options);
    })
}

fn under_callgrind(
    requests: u64,
    out: Option<&Path>,
    arguments: impl FnOnce(&mut Command),
) -> Result<f64, String> {
    let program =
        std::env::current_exe().map_err(|error| format!("this program's path: {error}"))?;
    let out = out.unwrap_or(Path::new("/dev/null"));
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=callgrind", "--collect-atstart=no", "--toggle-collect=*measured_phase*"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program);
    arguments(&mut command);
    let output = command.output().map_err(|error| format!("valgrind can't be run: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let collected = said
        .lines()
        .filter_map(|line| line.split_once("Collected : "))
        .find_map(|(_, number)| number.trim().parse::<u64>().ok());
    match collected.filter(|&collected| output.status.success() && collected > 0) {
        Some(collected) => Ok(collected as f64 / requests as f64),
        None => Err(format!("callgrind collected nothing: {said}")),
    }
}
