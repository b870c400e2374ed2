//! An object store: moto, an independent implementation of S3.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Guard, text, workspace};

/// A server of moto with a bucket, and a file with credentials that it takes.
pub struct Moto {
    _guard: Guard,
    /// Host and port.
    pub address: String,
    /// The file.
    pub credentials: PathBuf,
}

impl Moto {
    pub fn start(directory: &Path) -> Moto {
        let tools = workspace().join("target/tools/bin");
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
        let guard = Guard(child);
        let address = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| Some(line.split_once("Running on http://")?.1.trim().to_owned()))
            .expect("moto_server says where it listens");
        std::thread::spawn(move || lines.for_each(drop));
        let credentials = directory.join("credentials");
        let words = "[default]\naws_access_key_id = key\naws_secret_access_key = secret\n";
        std::fs::write(&credentials, words).expect("a file");
        let moto = Moto { _guard: guard, address, credentials };
        assert!(moto.request("PUT /bucket").contains(" 200 "));
        moto
    }

    pub fn request(&self, line: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).expect("moto_server listens");
        let head = format!(
            "{line} HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\nConnection: close\r\n\
             Authorization: AWS4-HMAC-SHA256 Credential=k/20260101/us-east-1/s3/aws4_request, \
             SignedHeaders=host, Signature=0\r\n\r\n",
            self.address
        );
        stream.write_all(head.as_bytes()).expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }

    pub fn uri(&self, prefix: &str, more: &str) -> PathBuf {
        let (address, file) = (&self.address, text(&self.credentials));
        format!("s3://bucket/{prefix}?endpoint=http://{address}&credentials={file}{more}").into()
    }
}
