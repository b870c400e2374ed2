//! Connections to the control socket: how many there may be, how long they may take, their end.
//!
//! A connection that sends nothing, or half a request, costs nobody else an answer: it is closed
//! after a while, and at once if there are as many as there may be and another one comes.

use std::io::ErrorKind;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioTimer;
use hyper_util::service::TowerToHyperService;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::fleet::Fleet;
use super::phase::Phase;
use super::routes::router;
use super::stream::{Connection, Stream};
use crate::control::refusal::{ErrorBody, Kind, Refusal};

/// Connections that there may be.
pub(super) const CONNECTIONS_MAX: usize = 64;
/// Time for the head of a request, from the end of the one before.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);
/// The longest head of a request.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// After a failed accept: time until the next one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections beyond those that there may be, for the moment in which they are told so; and the
/// length of that moment.
const REFUSED_MAX: usize = 16;
const REFUSED_PATIENCE: Duration = Duration::from_secs(1);

/// The response to one connection too many: all others wait for an answer.
fn full() -> String {
    let said = format_args!("{CONNECTIONS_MAX} requests are being answered").to_string();
    let error = Refusal::new(Kind::Busy, said).expected("fewer").advice("wait for one of them");
    let body = serde_json::to_string(&ErrorBody { error });
    let body = body.expect("plain data always serializes");
    format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// The connections that there are, the oldest first.
struct All {
    router: axum::Router,
    busy: watch::Sender<usize>,
    phase: watch::Receiver<Phase>,
    tasks: JoinSet<()>,
    /// Connections beyond those that there may be, which are told so.
    refused: JoinSet<Result<(), Elapsed>>,
    connections: Vec<(AbortHandle, Arc<Connection>)>,
}

/// Serves until the phase is that of the end.
pub(super) async fn serve(
    listener: UnixListener,
    fleet: Fleet,
    mut phase: watch::Receiver<Phase>,
    busy: watch::Sender<usize>,
) {
    let listener = match tokio::net::UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!("the control socket can't be served: {error}"),
    };
    let mut all = All {
        router: router(fleet),
        busy,
        phase: phase.clone(),
        tasks: JoinSet::new(),
        refused: JoinSet::new(),
        connections: Vec::new(),
    };
    let mut failing = false;
    let patience = loop {
        let now = *phase.borrow_and_update();
        if let Phase::Ending(patience) = now {
            break patience;
        }
        tokio::select! {
            changed = phase.changed() => {
                if changed.is_err() {
                    break Duration::ZERO;
                }
            }
            _ = all.tasks.join_next(), if !all.tasks.is_empty() => all.forget_ended(),
            accepted = listener.accept(), if now == Phase::Open => {
                let failed_before = std::mem::replace(&mut failing, accepted.is_err());
                match accepted {
                    Ok((stream, _)) => all.add(stream),
                    Err(error) => {
                        if !failed_before {
                            tracing::warn!(%error, "can't accept control clients for now");
                        }
                        all.make_room();
                        sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        }
    };
    drop(listener);
    all.finish(Instant::now() + patience).await;
}

impl All {
    fn add(&mut self, stream: UnixStream) {
        self.forget_ended();
        if self.connections.len() >= CONNECTIONS_MAX && !self.make_room() {
            while self.refused.try_join_next().is_some() {}
            if self.refused.len() < REFUSED_MAX {
                self.refused.spawn(timeout(REFUSED_PATIENCE, refuse(stream)));
            }
            return;
        }
        let connection = Connection::new(stream, self.busy.clone());
        let serving = one(connection.clone(), self.router.clone(), self.phase.clone());
        self.connections.push((self.tasks.spawn(serving), connection));
    }

    /// Closes the oldest connection that waits for no answer; `false`: there is none.
    fn make_room(&mut self) -> bool {
        let idle = |(_, connection): &(AbortHandle, Arc<Connection>)| !connection.is_answering();
        let Some(at) = self.connections.iter().position(idle) else { return false };
        self.connections.remove(at).0.abort();
        true
    }

    fn forget_ended(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        self.connections.retain(|(task, _)| !task.is_finished());
    }

    /// Waits for the connections, which close themselves when they have their responses. Those that
    /// another program answers stay as they are.
    async fn finish(&mut self, end: Instant) {
        loop {
            self.forget_ended();
            if self.connections.iter().all(|(_, connection)| connection.is_given_away()) {
                return;
            }
            if timeout_at(end, self.tasks.join_next()).await.is_err() {
                return;
            }
        }
    }
}

/// Tells a client that there are too many. Its request is read: a client whose request can't be
/// sent would not look at the response.
async fn refuse(stream: UnixStream) {
    if stream.writable().await.is_err() {
        return;
    }
    // It fits into the buffer of a new connection.
    let _ = stream.try_write(full().as_bytes());
    let mut piece = [0; 1024];
    while stream.readable().await.is_ok() {
        match stream.try_read(&mut piece) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

/// Serves one connection to its end.
async fn one(connection: Arc<Connection>, router: axum::Router, mut phase: watch::Receiver<Phase>) {
    let router = TowerToHyperService::new(router);
    let of_request = connection.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(of_request.clone());
        router.call(request)
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(Stream(connection), service);
    let mut serving = std::pin::pin!(serving);
    let ending = async move {
        // Without a sender it is the end as well.
        let _ = phase.wait_for(|phase| matches!(phase, Phase::Ending(_))).await.is_ok();
    };
    // Errors are the client's: it went away, was too slow, or spoke something else.
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = ending => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a control connection ended");
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::control::mailbox::mailbox;
    use crate::control::registry::Registry;

    /// Bug: one connection too many was closed without a response, as a new socket is not known to
    /// be writable. Fix: a task of its own writes it when it can be written.
    #[test]
    fn one_connection_too_many_gets_a_response_and_others_keep_theirs() {
        const STOP: &[u8] = b"POST /v1/stop HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n";
        let directory = std::env::temp_dir();
        let path = directory.join(format!("ubcache-connections-{}.sock", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).expect("a socket");
        listener.set_nonblocking(true).expect("a socket");
        // A set whose thread takes requests, and answers none.
        let (handle, _mailroom) = mailbox("");
        let registry = Registry::default();
        registry.add(handle);
        let (phase, phases) = watch::channel(Phase::Open);
        let (busy, mut answering) = watch::channel(0);
        let serving = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                serve(listener, Fleet::new(registry, "none".as_ref()), phases, busy).await
            });
        });
        let connect = || {
            let mut stream = UnixStream::connect(&path).expect("it listens");
            stream.write_all(STOP).expect("connected");
            stream
        };
        let waiting: Vec<UnixStream> = (0..CONNECTIONS_MAX).map(|_| connect()).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let all = answering.wait_for(|busy| *busy == CONNECTIONS_MAX);
        drop(runtime.block_on(all).expect("it serves"));
        let mut response = [0; 512];
        let count = connect().read(&mut response).expect("a response");
        let response = String::from_utf8_lossy(&response[..count]).into_owned();
        assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
        assert!(response.ends_with("}}") && response.contains("wait for one"), "{response}");
        phase.send_replace(Phase::Ending(Duration::ZERO));
        serving.join().expect("it ends");
        drop(waiting);
        let _ = std::fs::remove_file(&path);
    }
}
