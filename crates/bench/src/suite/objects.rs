//! A volume on an object store, beside nbdkit's S3 plugin over the same store.
//!
//! The store is moto, a process of Python that keeps objects in memory. The plugin writes through:
//! each of its writes reads an object and writes it again. Its objects have 64 KiB, the largest
//! with which nbdkit 1.32 starts it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use super::servers::{Files, Serve, Server, make_over};
use super::{Options, Results, Row, median};
use crate::nbd::load::{Load, Until, run};

/// Serves a store with two buckets until its input ends; says at which port, and where boto3 is.
const STORE: &str = "
import os, sys, boto3
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address='127.0.0.1', port=0)
server.start()
port = server.get_host_and_port()[1]
store = boto3.client('s3', endpoint_url=f'http://127.0.0.1:{port}')
for name in ('cached', 'plain'):
    store.create_bucket(Bucket=name)
print('store', port, os.path.dirname(os.path.dirname(boto3.__file__)), flush=True)
sys.stdin.read()
";
const CREDENTIALS: [(&str, &str); 4] = [
    ("AWS_ACCESS_KEY_ID", "key"),
    ("AWS_SECRET_ACCESS_KEY", "secret"),
    ("AWS_DEFAULT_REGION", "us-east-1"),
    ("AWS_ALLOW_HTTP", "true"),
];
const VOLUME: &str = "256M";
const FLUSH_EVERY: u32 = 32;

/// The store, ended when it is dropped.
struct Store {
    child: Child,
    endpoint: String,
    packages: String,
}

impl Store {
    fn start() -> Result<Store, String> {
        let failed = |why: String| format!("moto (pip install 'moto[s3,server]'): {why}");
        let mut child = Command::new("python3")
            .args(["-c", STORE])
            .envs(CREDENTIALS)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        let stdout = child.stdout.take().expect("it was asked for");
        // The server says something of its own first.
        let lines = BufReader::new(stdout).lines().map_while(Result::ok);
        let said = lines.filter_map(|line| line.strip_prefix("store ").map(str::to_owned)).next();
        match said.as_deref().and_then(|said| said.split_once(' ')) {
            Some((port, packages)) => Ok(Store {
                child,
                endpoint: format!("http://127.0.0.1:{port}"),
                packages: packages.to_owned(),
            }),
            None => {
                let _ = child.wait();
                Err(failed("it does not start".to_owned()))
            }
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Random writes with flushes.
pub fn random_writes(options: &Options, results: &mut Results) -> Result<(), String> {
    let store = Store::start()?;
    let mut environment: Vec<(String, String)> =
        CREDENTIALS.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    environment.push(("AWS_ENDPOINT_URL".to_owned(), store.endpoint.clone()));
    environment.push(("PYTHONPATH".to_owned(), store.packages.clone()));
    let options = Options { environment, ..options.clone() };
    let endpoint = format!("endpoint-url={}", store.endpoint);
    let size = format!("size={VOLUME}");
    let arguments = [
        "S3",
        &endpoint,
        "bucket=plain",
        "key=disk",
        &size,
        "object-size=64K",
        "access-key=key",
        "secret-key=secret",
    ];
    let plain = Server::nbdkit(&options, "nbdkit S3", "plain.nbd", &arguments)?;
    let files = Files {
        cache: options.directory.join("objects-cache.img"),
        backing: format!("s3://cached/disk?size={VOLUME}").into(),
    };
    make_over(&options, &files, "1g")?;
    let serve = Serve::with("objects.nbd", &["--page-cache=always", "--mode", "writeback"]);
    let cached = Server::ubcache(&options, &files, &serve)?;
    let (mut plainly, mut through) = (Vec::new(), Vec::new());
    for turn in 0..options.turns().min(3) as u64 {
        for (server, rates) in [(&plain, &mut plainly), (&cached, &mut through)] {
            let outcome = run(&Load {
                seed: turn + 1,
                queue_depth: 16,
                write_percent: 100,
                flush_every: FLUSH_EVERY,
                until: Until::Time(options.turn()),
                ..server.load()
            })?;
            if outcome.errors > 0 {
                return Err(format!("{}: {} requests failed", server.name, outcome.errors));
            }
            rates.push(outcome.iops());
        }
    }
    let (plainly, through) = (median(plainly), median(through));
    results.rows.push(Row {
        what: format!(
            "object store (moto): random writes of 4 KiB, QD 16, a flush after {FLUSH_EVERY}: \
             writes a second"
        ),
        goal: "≥ 5 × nbdkit's S3 plugin".to_owned(),
        reached: format!("{through:.0}"),
        peer: format!("nbdkit S3, objects of 64 KiB: {plainly:.0}"),
        ratio: format!("{:.0}", through / plainly),
        met: Some(through >= 5.0 * plainly),
        command: "`cargo xtask bench --only objects`".to_owned(),
    });
    Ok(())
}
