//! The bill of materials of the program: name, version, licence and digest of each crate that is in
//! it, in the form of CycloneDX.

use std::path::Path;
use std::process::Command;

/// Name of the file, beside a manifest and in packages.
pub const NAME: &str = "ubcache.cdx.json";

/// The program that writes it: its crate, and the version.
pub const CARGO_CYCLONEDX: [&str; 2] = ["cargo-cyclonedx", "0.5.9"];

/// Writes the bill of what is linked for a platform.
pub fn write(cargo: &str, triple: &str, file: &Path) -> Result<(), String> {
    let mut bill = Command::new(super::installed(CARGO_CYCLONEDX[0]));
    bill.args(["cyclonedx", "--quiet", "--quiet", "--format", "json", "--spec-version", "1.5"]);
    bill.args(["--manifest-path", "crates/cli/Cargo.toml", "--target", triple]);
    // Crates of build scripts are no part of the program.
    bill.args(["--no-build-deps", "--override-filename", "ubcache.cdx"]);
    bill.env("CARGO", cargo).env("SOURCE_DATE_EPOCH", super::seconds(&super::date())?);
    super::must(&mut bill)?;
    // One is written for each crate of the workspace.
    let mut text = None;
    for folder in std::fs::read_dir("crates").map_err(|error| error.to_string())?.flatten() {
        let made = folder.path().join(NAME);
        if folder.file_name() == "cli" {
            text = std::fs::read_to_string(&made).ok();
        }
        let _ = std::fs::remove_file(&made);
    }
    let _ = std::fs::remove_file(Path::new("xtask").join(NAME));
    let text = text.ok_or_else(|| format!("{} wrote no bill", CARGO_CYCLONEDX[0]))?;
    // The same from every checkout.
    let here = std::env::current_dir().map_err(|error| error.to_string())?;
    let text = text.replace(&here.display().to_string(), "/ubcache");
    std::fs::write(file, text).map_err(|error| format!("{}: {error}", file.display()))
}
