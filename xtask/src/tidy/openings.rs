//! A comment is a sentence that begins with a noun or a verb: "Records that wait.", not "What
//! waits.".

use super::{Finding, Source};

/// Openings that turn a sentence around.
const BANNED: &[&str] =
    &["What", "Who", "Whom", "Whose", "Where", "Whether", "How", "As", "Which", "Why"];

pub fn check(sources: &[Source]) -> Vec<Finding> {
    let openings = sources.iter().filter(|source| source.is_code()).flat_map(comments);
    openings
        .filter(|(_, _, word)| BANNED.contains(&word.as_str()))
        .map(|(source, line, word)| {
            source.finding(line, format!("a comment begins with \"{word}\""))
        })
        .collect()
}

/// Every comment: its line and its first word. Lines that follow one another are one comment, up to
/// an empty one.
fn comments(source: &Source) -> Vec<(&Source, usize, String)> {
    let mut begins = true;
    let mut found = Vec::new();
    for (line, number) in source.text.lines().zip(1..) {
        let Some(text) = text_of_comment(line) else {
            begins = true;
            continue;
        };
        if begins && let Some(word) = first_word(text) {
            found.push((source, number, word));
        }
        begins = text.is_empty();
    }
    found
}

fn text_of_comment(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let text = ["///", "//!", "//"].iter().find_map(|start| line.strip_prefix(start))?;
    Some(text.trim())
}

fn first_word(text: &str) -> Option<String> {
    let word: String = text.chars().take_while(|char| char.is_alphabetic()).collect();
    (!word.is_empty()).then_some(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comment_openings_are_counted() {
        let text = "/// Whether it\n/// What\n///\n/// How\nfn a() {} // Who\n// `As`\n//! Keys.\n";
        let source = Source { path: "a.rs".to_owned(), text: text.to_owned() };
        let words: Vec<_> =
            comments(&source).into_iter().map(|(_, line, word)| (line, word)).collect();
        assert_eq!(words, [(1, "Whether".to_owned()), (4, "How".to_owned())]);
        assert_eq!(check(&[source]).len(), 2);
    }
}
