//! Programs that people keep their data with, on ext4 on an export: what they were told is safe is
//! there after `kill -9` of the daemon.
//!
//! `UBCACHE_TEST_KILLS=50 cargo test --release -p ubcache-cli --test applications` runs for longer.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use support::file_system::{FileSystem, PROGRAMS};
use support::{Daemon, Guard, each_io, have, kills, make_set_sized, must, skipped, text, tool};

/// Load before a kill, at least.
const LOAD: Duration = Duration::from_secs(3);

/// Writeback: what was flushed is in the cache only.
const MODE: [&str; 2] = ["--mode", "writeback"];

#[test]
fn fsx_finds_no_fault_in_a_file_system() {
    let test = "fsx_finds_no_fault_in_a_file_system";
    if !have(test, &PROGRAMS) || !have(test, &["fsx"]) {
        return;
    }
    each_io(test, |io, directory| {
        let (cache, backings) = make_set_sized(directory, 64, &[512], &[]);
        let daemon = Daemon::start(io, directory, &cache, &backings, &MODE);
        let Some(file_system) = FileSystem::make(test, &daemon, directory) else { return };
        let file = file_system.point.join("file");
        let operations = (2000 * kills(1)).to_string();
        must(tool("fsx").args(["-S", "7", "-N", &operations]).arg(file));
        file_system.unmount();
        daemon.stop();
    });
}

#[test]
fn sqlite_has_every_acknowledged_transaction_after_a_kill() {
    let test = "sqlite_has_every_acknowledged_transaction_after_a_kill";
    if !have(test, &PROGRAMS) || !have(test, &["sqlite3"]) {
        return;
    }
    each_io(test, |io, directory| {
        let (cache, backings) = make_set_sized(directory, 64, &[512], &[]);
        let start = || Daemon::start(io, directory, &cache, &backings, &MODE);
        let mut daemon = start();
        let Some(mut file_system) = FileSystem::make(test, &daemon, directory) else { return };
        let mut acknowledged = 0;
        for kill in 0..kills(2) {
            let database = file_system.point.join("database");
            let load = SqliteLoad::start(&database, acknowledged);
            std::thread::sleep(LOAD + Duration::from_millis(kill % 7 * 131));
            daemon.kill();
            let before = acknowledged;
            acknowledged = load.end();
            assert!(acknowledged > before, "kill {kill}: no transaction was acknowledged");
            file_system.tear_down();

            daemon = start();
            file_system = FileSystem::again(&daemon, directory);
            assert_eq!(sqlite(&database, "PRAGMA integrity_check;"), "ok", "kill {kill}");
            let count = |what: &str| -> u64 {
                let found = sqlite(&database, &format!("SELECT {what};"));
                found.parse().unwrap_or_else(|_| panic!("kill {kill}: {what}: {found:?}"))
            };
            let last = count("max(n) FROM first");
            assert!(last >= acknowledged, "kill {kill}: {acknowledged} acknowledged, {last} there");
            assert_eq!(count("count(*) FROM first"), last, "kill {kill}: one is missing");
            let halves = "count(*) FROM first JOIN second USING (n) WHERE first.pad = second.pad";
            assert_eq!(count(halves), last, "kill {kill}: half of a transaction");
            acknowledged = last;
        }
        file_system.unmount();
        daemon.stop();
    });
}

/// Runs statements.
fn sqlite(database: &Path, statements: &str) -> String {
    must(tool("sqlite3").arg(database).arg(statements)).trim().to_owned()
}

/// A program that commits one transaction after the other, and says which.
struct SqliteLoad {
    sqlite: Guard,
    feeder: std::thread::JoinHandle<()>,
    reader: std::thread::JoinHandle<u64>,
}

impl SqliteLoad {
    fn start(database: &Path, last: u64) -> SqliteLoad {
        let mut command = tool("sqlite3");
        command.arg("-bail").arg(database).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::null()).spawn().expect("sqlite3 runs");
        let mut input = child.stdin.take().expect("a pipe");
        let output = child.stdout.take().expect("a pipe");
        let feeder = std::thread::spawn(move || {
            let tables = "PRAGMA journal_mode=WAL;\nPRAGMA synchronous=FULL;\n\
                          CREATE TABLE IF NOT EXISTS first(n INTEGER PRIMARY KEY, pad);\n\
                          CREATE TABLE IF NOT EXISTS second(n INTEGER PRIMARY KEY, pad);\n";
            let mut sent = input.write_all(tables.as_bytes());
            let mut n = last;
            while sent.is_ok() {
                n += 1;
                sent = writeln!(
                    input,
                    "BEGIN; INSERT INTO first VALUES ({n}, randomblob(1500)); INSERT INTO second \
                     SELECT n, pad FROM first WHERE n = {n}; COMMIT; SELECT 'done', {n};"
                );
            }
        });
        let reader = std::thread::spawn(move || {
            let lines = BufReader::new(output).lines().map_while(Result::ok);
            let done = lines.filter_map(|line| line.strip_prefix("done|")?.parse().ok());
            done.last().unwrap_or(last)
        });
        SqliteLoad { sqlite: Guard(child), feeder, reader }
    }

    /// Waits until the program has ended by an I/O error; returns the last transaction that it
    /// reported.
    fn end(mut self) -> u64 {
        self.sqlite.0.wait().expect("a child can be waited for");
        self.feeder.join().expect("the feeder ends");
        self.reader.join().expect("the reader ends")
    }
}

#[test]
fn postgresql_has_every_acknowledged_transaction_after_a_kill() {
    let test = "postgresql_has_every_acknowledged_transaction_after_a_kill";
    if !have(test, &PROGRAMS) || !have(test, &["setpriv"]) {
        return;
    }
    let Some(programs) = postgresql_programs() else {
        skipped(test, "not installed: postgresql");
        return;
    };
    each_io(test, |io, directory| {
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(directory, open).expect("the directory is the test's");
        let (cache, backings) = make_set_sized(directory, 128, &[1024], &[]);
        let start = || Daemon::start(io, directory, &cache, &backings, &MODE);
        let mut daemon = start();
        let Some(mut file_system) = FileSystem::make(test, &daemon, directory) else { return };
        let Some(postgresql) = Postgresql::new(&programs, directory, &file_system.point) else {
            skipped(test, "the user postgres does not exist, or can't reach the scratch directory");
            return;
        };
        must(postgresql.client("initdb").args(["-A", "trust", "-D"]).arg(&postgresql.data));
        let mut server = postgresql.serve();
        must(postgresql.client("createdb").arg("bench"));
        must(postgresql.client("pgbench").args(["-i", "-s", "3", "-q", "bench"]));
        for kill in 0..kills(1) {
            let logs = directory.join(format!("transactions{kill}"));
            postgresql.directory(&logs);
            let before = postgresql.count("count(*) FROM pgbench_history");
            let mut load = postgresql.client("pgbench");
            load.args(["-c", "4", "-T", "3600", "-n", "-l", "bench"]).current_dir(&logs);
            load.stdout(Stdio::null()).stderr(Stdio::null());
            let mut load = Guard(load.spawn().expect("pgbench runs"));
            std::thread::sleep(2 * LOAD + Duration::from_millis(kill % 7 * 131));
            daemon.kill();
            load.0.wait().expect("a child can be waited for");
            drop(server);
            let acknowledged = lines_in(&logs);
            assert!(acknowledged > 0, "kill {kill}: no transaction was acknowledged");
            file_system.tear_down();

            daemon = start();
            file_system = FileSystem::again(&daemon, directory);
            server = postgresql.serve();
            let there = postgresql.count("count(*) FROM pgbench_history");
            let least = before + acknowledged;
            assert!(there >= least, "kill {kill}: {least} acknowledged, {there} there");
            let sum = postgresql.query("sum(delta) FROM pgbench_history");
            for sums in ["abalance) FROM pgbench_accounts", "bbalance) FROM pgbench_branches"] {
                assert_eq!(postgresql.query(&format!("sum({sums}")), sum, "kill {kill}: {sums}");
            }
            must(postgresql.client("pg_amcheck").args(["--install-missing", "bench"]));
        }
        postgresql.stop(server);
        file_system.unmount();
        daemon.stop();
    });
}

/// Directory with the newest server's programs, where Debian has them.
fn postgresql_programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let programs = versions.filter_map(|version| Some(version.ok()?.path().join("bin")));
    programs.filter(|programs| programs.join("initdb").is_file()).max()
}

/// Lines of all files in a directory.
fn lines_in(directory: &Path) -> u64 {
    let files = std::fs::read_dir(directory).expect("a directory");
    let texts = files.map(|file| std::fs::read_to_string(file.expect("a file").path()));
    texts.map(|text| text.expect("text").lines().count() as u64).sum()
}

/// A server on the file system, which runs as the user postgres.
struct Postgresql {
    programs: PathBuf,
    data: PathBuf,
    sockets: PathBuf,
    user: (u32, u32),
}

impl Postgresql {
    fn new(programs: &Path, directory: &Path, point: &Path) -> Option<Postgresql> {
        let id = |which: &str| -> Option<u32> {
            let output = tool("id").args([which, "postgres"]).output().ok()?;
            String::from_utf8_lossy(&output.stdout).trim().parse().ok()
        };
        let postgresql = Postgresql {
            programs: programs.to_owned(),
            data: point.join("postgresql"),
            sockets: directory.join("run"),
            user: (id("-u")?, id("-g")?),
        };
        postgresql.directory(&postgresql.data);
        postgresql.directory(&postgresql.sockets);
        let reached =
            postgresql.command(Path::new("test")).arg("-w").arg(&postgresql.data).status();
        reached.ok()?.success().then_some(postgresql)
    }

    /// Makes a directory of the user.
    fn directory(&self, path: &Path) {
        std::fs::create_dir(path).expect("a directory");
        chown(path, Some(self.user.0), Some(self.user.1)).expect("root may do that");
    }

    /// A program that runs as the user.
    fn command(&self, program: &Path) -> Command {
        let mut command = tool("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]).arg(program);
        command.current_dir(&self.sockets);
        command
    }

    /// A program of PostgreSQL that finds the server.
    fn client(&self, program: &str) -> Command {
        let mut command = self.command(&self.programs.join(program));
        command.env("PGHOST", &self.sockets);
        command
    }

    /// Starts the server and waits until it answers.
    fn serve(&self) -> Guard {
        // The one that was killed left it.
        let _ = std::fs::remove_file(self.data.join("postmaster.pid"));
        let mut command = self.command(&self.programs.join("postgres"));
        command.arg("-D").arg(&self.data).arg("-k").arg(&self.sockets);
        command.args(["-c", "listen_addresses="]);
        let mut log = std::fs::OpenOptions::new();
        let log = log.create(true).append(true).open(self.sockets.join("log")).expect("a log");
        command.stdout(Stdio::null()).stderr(log);
        let mut server: Child = command.spawn().expect("postgres runs");
        while !self.client("pg_isready").arg("-q").status().expect("it runs").success() {
            let ended = server.try_wait().expect("a child can be waited for");
            assert!(ended.is_none(), "postgres ended: {}", self.log());
            std::thread::sleep(Duration::from_millis(100));
        }
        Guard(server)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.sockets.join("log")).unwrap_or_default()
    }

    /// Stops the server in good order.
    fn stop(&self, mut server: Guard) {
        must(self.client("pg_ctl").args(["-D", text(&self.data), "-m", "fast", "stop"]));
        server.0.wait().expect("a child can be waited for");
    }

    fn query(&self, what: &str) -> String {
        let select = format!("SELECT {what}");
        must(self.client("psql").args(["-At", "bench", "-c", &select])).trim().to_owned()
    }

    fn count(&self, what: &str) -> u64 {
        self.query(what).parse().expect("a number")
    }
}
