//! The status page: four files without a build step, which ask the control API for the report and
//! draw it, and the options by which it is served.

use std::net::SocketAddr;
use std::path::PathBuf;

/// The page.
pub const INDEX: &str = include_str!("index.html");
/// Its style sheet.
pub const STYLE: &str = include_str!("status.css");
/// Its script about places: buckets and ranges.
pub const MAPS_SCRIPT: &str = include_str!("maps.js");
/// Its script.
pub const SCRIPT: &str = include_str!("status.js");

/// Options of the status page.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StatusPageOptions {
    /// Its address; none: there is none but on the control socket.
    pub address: Option<SocketAddr>,
    /// The file with the token that readers have to know.
    pub token: Option<PathBuf>,
}
