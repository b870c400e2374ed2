//! Words of a command line, as messages print them.

/// A name as a shell reads it.
pub fn shell_word(name: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_.:/".contains(c);
    match name.chars().all(plain) && !name.is_empty() {
        true => name.to_owned(),
        false => format!("'{}'", name.replace('\'', "'\\''")),
    }
}
