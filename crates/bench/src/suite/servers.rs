//! NBD servers as processes of their own, ended when they are dropped.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{Options, median};
use crate::nbd::Address;
use crate::nbd::client::connect;
use crate::nbd::load::{Load, Order, Outcome, Until, run};

/// Time limit for a server to begin listening, or to end.
const SERVER_TIMEOUT: Duration = Duration::from_secs(60);

/// A running server.
pub struct Server {
    /// Name of the server in tables.
    pub name: String,
    /// Command that started it.
    pub command: String,
    child: Child,
    address: Address,
    export: &'static str,
    control: Option<(PathBuf, PathBuf)>,
}

/// Arguments for `ubcache serve`.
#[derive(Clone, Debug, Default)]
pub struct Serve {
    /// Arguments besides devices and sockets.
    pub arguments: Vec<String>,
    /// Name of the socket in the directory.
    pub socket: &'static str,
}

impl Serve {
    /// Starts with these arguments, and settings against bypassing: this machine may look
    /// congested.
    pub fn with(socket: &'static str, arguments: &[&str]) -> Serve {
        let mut all: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        for setting in [
            "sequential_cutoff=0",
            "congested_read_threshold_us=0",
            "congested_write_threshold_us=0",
        ] {
            all.extend(["--set".to_owned(), setting.to_owned()]);
        }
        Serve { arguments: all, socket }
    }
}

/// A cache device and a backing device, as files.
#[derive(Clone, Debug)]
pub struct Files {
    /// The cache.
    pub cache: PathBuf,
    /// The backing device.
    pub backing: PathBuf,
}

/// Formats files with `ubcache make`. The first `content_bytes` of the backing file are written
/// with noise, and the rest is a hole.
pub fn make(
    options: &Options,
    name: &str,
    cache_bytes: u64,
    volume_bytes: u64,
    content_bytes: u64,
) -> Result<Files, String> {
    let file = |kind: &str| options.directory.join(format!("{name}-{kind}.img"));
    let files = Files { cache: file("cache"), backing: file("backing") };
    if content_bytes > 0 {
        super::fio::write_noise(&files.backing, content_bytes + 8192)?;
    }
    let backing = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&files.backing)
        .and_then(|backing| backing.set_len(volume_bytes + 8192));
    backing.map_err(|error| format!("{}: {error}", files.backing.display()))?;
    make_over(options, &files, &cache_bytes.to_string())?;
    Ok(files)
}

/// Formats a cache file of this size, and what is there as its backing device.
pub fn make_over(options: &Options, files: &Files, cache_size: &str) -> Result<(), String> {
    let output = Command::new(&options.ubcache)
        .envs(options.environment.iter().cloned())
        .arg("make")
        .arg("-C")
        .arg(&files.cache)
        .arg("-B")
        .arg(&files.backing)
        .args(["--cache-size", cache_size, "-l", "data", "--force", "-w", "4k"])
        .output()
        .map_err(|error| format!("{}: {error}", options.ubcache.display()))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("ubcache make: {}", String::from_utf8_lossy(&output.stderr))),
    }
}

impl Server {
    /// Starts ubcache.
    pub fn ubcache(options: &Options, files: &Files, serve: &Serve) -> Result<Server, String> {
        let socket = options.directory.join(serve.socket);
        let control = options.directory.join(format!("{}.control", serve.socket));
        let mut command = Command::new(&options.ubcache);
        command.arg("serve").arg("-C").arg(&files.cache).arg("-B").arg(&files.backing);
        command
            .arg("--nbd")
            .arg(format!("unix:{}", socket.display()))
            .arg("--control")
            .arg(&control);
        command.args(&serve.arguments).env("UBCACHE_LOG", "error");
        command.envs(options.environment.iter().cloned());
        let control = Some((options.ubcache.clone(), control));
        let shown = format!("ubcache serve -C CACHE -B BACKING {}", serve.arguments.join(" "));
        Server::start("ubcache", shown, command, &socket, "data", control)
    }

    /// Starts nbdkit with these arguments.
    pub fn nbdkit(
        options: &Options,
        name: &str,
        socket: &str,
        arguments: &[&str],
    ) -> Result<Server, String> {
        let socket = options.directory.join(socket);
        let mut command = Command::new("nbdkit");
        command.args(["-f", "-U"]).arg(&socket).args(arguments).env("TMPDIR", &options.directory);
        command.envs(options.environment.iter().cloned());
        let shown: Vec<String> = arguments
            .iter()
            .map(|argument| argument.rsplit('/').next().unwrap_or_default().to_owned())
            .collect();
        Server::start(name, format!("nbdkit {}", shown.join(" ")), command, &socket, "", None)
    }

    /// Starts the smallest server.
    pub fn floor(options: &Options, bytes: u64) -> Result<Server, String> {
        let socket = options.directory.join("floor.nbd");
        let program =
            std::env::current_exe().map_err(|error| format!("this program's path: {error}"))?;
        let mut command = Command::new(program);
        command.arg("memory-server").arg(format!("unix:{}", socket.display()));
        command.args(["--size", &bytes.to_string()]);
        let shown = "ubcache-bench memory-server".to_owned();
        Server::start("memory, nothing else", shown, command, &socket, "", None)
    }

    fn start(
        name: &str,
        shown: String,
        mut command: Command,
        socket: &Path,
        export: &'static str,
        control: Option<(PathBuf, PathBuf)>,
    ) -> Result<Server, String> {
        let program = command.get_program().to_string_lossy().into_owned();
        let _ = std::fs::remove_file(socket);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let child = child.map_err(|error| format!("{program}: {error}"))?;
        let address = Address::Unix(socket.to_owned());
        let mut server =
            Server { name: name.to_owned(), command: shown, child, address, export, control };
        let began = Instant::now();
        while connect(&server.address, export).is_err() {
            let ended = server.child.try_wait().map_err(|error| error.to_string())?;
            if ended.is_some() || began.elapsed() > SERVER_TIMEOUT {
                let stderr = server.child.stderr.take().map(BufReader::new);
                let said: Vec<String> = match ended {
                    Some(_) => {
                        stderr.into_iter().flat_map(|it| it.lines().map_while(Result::ok)).collect()
                    }
                    None => Vec::new(),
                };
                return Err(format!("{program} does not listen: {}", said.join("; ")));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(server)
    }

    /// A load for this server.
    pub fn load(&self) -> Load {
        Load {
            export: self.export.to_owned(),
            server_pid: Some(self.child.id()),
            ..Load::new(self.address.clone())
        }
    }

    /// Requests for every piece of the first bytes of the export, once.
    pub fn once(
        &self,
        bytes: u64,
        block_bytes: u32,
        write: bool,
        queue_depth: u32,
    ) -> Result<(), String> {
        let outcome = run(&Load {
            order: Order::Scattered,
            span_bytes: Some(bytes),
            block_bytes,
            queue_depth,
            write_percent: if write { 100 } else { 0 },
            until: Until::Requests(bytes / u64::from(block_bytes)),
            ..self.load()
        })?;
        if outcome.errors > 0 {
            Err(format!("{}: {} errors", self.name, outcome.errors))
        } else {
            Ok(())
        }
    }

    /// A number of `ubcache status --json`: of the first volume, or of the cache.
    pub fn status(&self, pointer: &str) -> Result<u64, String> {
        let (program, control) = self.control.as_ref().ok_or("only ubcache has a status")?;
        let output =
            Command::new(program).args(["status", "--json", "--control"]).arg(control).output();
        let output = output.map_err(|error| format!("ubcache status: {error}"))?;
        let status: Value =
            serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
        let number = status.pointer(&format!("/sets/0{pointer}")).and_then(Value::as_u64);
        number.ok_or_else(|| format!("ubcache status has no {pointer}"))
    }

    /// Changes attributes.
    pub fn set(&self, attributes: &[&str]) -> Result<(), String> {
        let (program, control) = self.control.as_ref().ok_or("only ubcache has attributes")?;
        let output = Command::new(program)
            .arg("set")
            .arg("--control")
            .arg(control)
            .args(attributes)
            .output();
        let output = output.map_err(|error| format!("ubcache set: {error}"))?;
        match output.status.success() {
            true => Ok(()),
            false => Err(format!("ubcache set: {}", String::from_utf8_lossy(&output.stderr))),
        }
    }

    /// Reads that missed the cache.
    pub fn misses(&self) -> Result<u64, String> {
        self.status("/volumes/0/stats/cache_misses")
    }

    /// An error if there were more than a few misses since then: reads that should have been hits.
    pub fn only_hits_since(&self, misses: u64) -> Result<(), String> {
        let more = self.misses()? - misses;
        if more > 100 {
            Err(format!("{more} reads that should have been hits were misses"))
        } else {
            Ok(())
        }
    }

    /// Brings the first bytes of the export into the cache. Not every miss leaves a copy, so the
    /// missing parts are read again.
    pub fn fill(&self, bytes: u64, block_bytes: u32, queue_depth: u32) -> Result<(), String> {
        let ours = self.control.is_some();
        for _ in 0..10 {
            let before = if ours { self.misses()? } else { 0 };
            self.once(bytes, block_bytes, false, queue_depth)?;
            if !ours || self.misses()? == before {
                return Ok(());
            }
        }
        Err("the cache can't be filled".to_owned())
    }

    /// Ends the process at once, as a crash would.
    pub fn kill(mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.child.id() as i32)
            && matches!(self.child.try_wait(), Ok(None))
        {
            let _ = kill_process(pid, Signal::TERM);
        }
        let began = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && began.elapsed() < SERVER_TIMEOUT {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Measurements of a server over its turns.
#[derive(Clone, Debug)]
pub struct Turns {
    /// Requests a second, the median.
    pub iops: f64,
    /// Bytes a second, the median.
    pub bandwidth: f64,
    /// Microseconds of its processor for a request, the median.
    pub server_micros: f64,
    /// Latency of all turns, in nanoseconds.
    pub latency: Histogram<u64>,
}

impl Turns {
    /// Puts outcomes together.
    pub fn of(outcomes: &[Outcome]) -> Turns {
        let mut latency = outcomes[0].latency.clone();
        for outcome in &outcomes[1..] {
            latency.add(&outcome.latency).expect("histograms of one shape");
        }
        let of = |number: fn(&Outcome) -> f64| median(outcomes.iter().map(number).collect());
        Turns {
            iops: of(Outcome::iops),
            bandwidth: of(Outcome::bandwidth),
            server_micros: of(|outcome| outcome.server_micros().unwrap_or(f64::NAN)),
            latency,
        }
    }
    /// A percentile of the latency in microseconds.
    pub fn micros(&self, percentile: f64) -> f64 {
        self.latency.value_at_percentile(percentile) as f64 / 1e3
    }
}

/// Gives every server its turns with the same load, one after the other, and that again.
pub fn in_turns(
    servers: &[&Server],
    turns: usize,
    change: impl Fn(Load) -> Load,
) -> Result<Vec<Turns>, String> {
    let mut outcomes: Vec<Vec<Outcome>> = servers.iter().map(|_| Vec::new()).collect();
    for turn in 0..turns {
        for (server, outcomes) in servers.iter().zip(&mut outcomes) {
            let outcome = run(&Load { seed: turn as u64 + 1, ..change(server.load()) })?;
            if outcome.errors > 0 {
                return Err(format!("{}: {} requests failed", server.name, outcome.errors));
            }
            outcomes.push(outcome);
        }
    }
    Ok(outcomes.iter().map(|outcomes| Turns::of(outcomes)).collect())
}
