//! An object store: moto, an independent implementation of S3. Tests of two crates include this
//! file.
#![allow(dead_code, reason = "each of them uses its own part of it")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A server of moto with a bucket, and a file with credentials that it takes.
pub struct Moto {
    child: Child,
    /// Host and port.
    pub address: String,
    /// The file.
    pub credentials: PathBuf,
}

impl Moto {
    pub fn start(directory: &Path) -> Moto {
        let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/bin");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let places: Vec<PathBuf> = std::env::split_paths(&path).chain([tools]).collect();
        let program = places.iter().map(|place| place.join("moto_server")).find(|it| it.is_file());
        let program =
            program.expect("moto_server is not there; install it with: cargo xtask packages");
        let mut child = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", "0"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("moto_server starts");
        let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let address = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| Some(line.split_once("Running on http://")?.1.trim().to_owned()))
            .expect("moto_server says where it listens");
        std::thread::spawn(move || lines.for_each(drop));
        let credentials = directory.join("credentials");
        let words = "[default]\naws_access_key_id = key\naws_secret_access_key = secret\n";
        std::fs::write(&credentials, words).expect("a file");
        let moto = Moto { child, address, credentials };
        assert!(moto.request("PUT /bucket").contains(" 200 "));
        moto
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Content of an object of the bucket.
    pub fn get(&self, key: &str) -> Vec<u8> {
        let answer = self.ask(&format!("GET /bucket/{key}"));
        let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").expect("a head");
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{key}");
        answer[end + 4..].to_vec()
    }

    /// Replaces an object of the bucket.
    pub fn put(&self, key: &str, content: &[u8]) {
        let answer = self.send(&format!("PUT /bucket/{key}"), content);
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{key}");
    }

    pub fn request(&self, line: &str) -> String {
        String::from_utf8_lossy(&self.ask(line)).into_owned()
    }

    fn ask(&self, line: &str) -> Vec<u8> {
        self.send(line, &[])
    }

    fn send(&self, line: &str, content: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(&self.address).expect("moto_server listens");
        let head = format!(
            "{line} HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\nConnection: close\r\n\
             Authorization: AWS4-HMAC-SHA256 Credential=k/20260101/us-east-1/s3/aws4_request, \
             SignedHeaders=host, Signature=0\r\n\r\n",
            self.address,
            content.len()
        );
        stream.write_all(&[head.as_bytes(), content].concat()).expect("a request");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an answer");
        answer
    }

    pub fn uri(&self, prefix: &str, more: &str) -> PathBuf {
        let (address, file) = (&self.address, self.credentials.display());
        format!("s3://bucket/{prefix}?endpoint=http://{address}&credentials={file}{more}").into()
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        self.kill();
    }
}
