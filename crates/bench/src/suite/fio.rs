//! fio, for the speed of the device without ubcache.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::random::Random;

/// A job.
#[derive(Clone, Debug)]
pub struct Job {
    /// `randread`, `randwrite`, `read`, `write`.
    pub pattern: &'static str,
    /// Bytes of a request.
    pub block_bytes: u64,
    /// Requests in flight.
    pub queue_depth: u32,
    /// After each write comes an fdatasync.
    pub fdatasync: bool,
    /// Duration of the job.
    pub time: Duration,
}

/// Result of a job.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Requests a second.
    pub iops: f64,
    /// Bytes a second.
    pub bandwidth: f64,
    /// The longest completion in microseconds.
    pub longest_micros: f64,
    /// The engine of fio.
    pub engine: &'static str,
}

impl Job {
    /// Arguments of the command line, without the file.
    pub fn command(&self, engine: &str) -> Vec<String> {
        let mut arguments = vec![
            "--name=raw".to_owned(),
            format!("--ioengine={engine}"),
            "--direct=1".to_owned(),
            format!("--rw={}", self.pattern),
            format!("--bs={}", self.block_bytes),
            format!("--iodepth={}", self.queue_depth),
            "--time_based".to_owned(),
            format!("--runtime={}ms", self.time.as_millis()),
        ];
        if self.fdatasync {
            arguments.push("--fdatasync=1".to_owned());
        }
        arguments
    }

    /// Runs it over a file that exists.
    pub fn run(&self, file: &Path) -> Result<Outcome, String> {
        // io_uring is forbidden in many containers.
        let engine = if run(&probe("io_uring"), file).is_ok() { "io_uring" } else { "libaio" };
        let report = run(&self.command(engine), file)?;
        let kind = if self.pattern.ends_with("read") { "read" } else { "write" };
        let number = |pointer: &str| {
            let found =
                report.pointer(&format!("/jobs/0/{kind}/{pointer}")).and_then(Value::as_f64);
            found.ok_or_else(|| format!("fio does not tell {pointer}"))
        };
        Ok(Outcome {
            iops: number("iops")?,
            bandwidth: number("bw_bytes")?,
            longest_micros: number("clat_ns/max")? / 1e3,
            engine,
        })
    }
}

fn probe(engine: &str) -> Vec<String> {
    let job = Job {
        pattern: "read",
        block_bytes: 4096,
        queue_depth: 1,
        fdatasync: false,
        time: Duration::from_millis(1),
    };
    job.command(engine)
}

fn run(arguments: &[String], file: &Path) -> Result<Value, String> {
    let output = Command::new("fio")
        .args(arguments)
        .arg(format!("--filename={}", file.display()))
        .args(["--output-format=json", "--allow_file_create=0"])
        .output()
        .map_err(|error| format!("fio: {error}"))?;
    if !output.status.success() {
        return Err(format!("fio: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    // Warnings may come first.
    let begin = text.find('{').unwrap_or(0);
    serde_json::from_str(&text[begin..]).map_err(|error| format!("what fio prints: {error}"))
}

/// Writes a file full of noise: neither holes nor zeroes, which storage may treat as something
/// special.
pub fn write_noise(path: &Path, bytes: u64) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let mut file = std::fs::File::create(path).map_err(failed)?;
    let mut random = Random::new(bytes);
    let mut chunk = vec![0_u8; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        for word in chunk.chunks_exact_mut(8) {
            word.copy_from_slice(&random.bits().to_ne_bytes());
        }
        let length = left.min(chunk.len() as u64);
        file.write_all(&chunk[..length as usize]).map_err(failed)?;
        left -= length;
    }
    file.sync_all().map_err(failed)
}
