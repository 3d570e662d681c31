//! Paths as Go's `path` package cleans them: the keys of the API are defined by its rules.

/// The shortest equal path: no empty component, no `.`, no `..` that could be resolved. Always absolute.
pub(crate) fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    let mut out = String::with_capacity(path.len() + 1);
    for part in parts {
        out.push('/');
        out.push_str(part);
    }
    if out.is_empty() {
        out.push('/');
    }
    out
}

/// As [`clean`], but a slash at the end stays: what Go's HTTP server redirects to.
pub(crate) fn clean_url(path: &str) -> String {
    let mut out = clean(path);
    if path.ends_with('/') && out != "/" {
        out.push('/');
    }
    out
}

/// The components of a clean path.
pub(crate) fn parts(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|part| !part.is_empty())
}

/// A clean path and one more component.
pub(crate) fn join(parent: &str, name: &str) -> String {
    if parent == "/" {
        format!("/{name}")
    } else {
        format!("{parent}/{name}")
    }
}

/// Is the key, seen from the watched path, hidden or below something hidden?
pub(crate) fn is_hidden(watched: &str, key: &str) -> bool {
    // A watcher below a directory that goes away is told, whatever the names.
    if watched.len() > key.len() {
        return false;
    }
    parts(&key[watched.len()..]).any(|part| part.starts_with('_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_as_go_does() {
        for (dirty, tidy) in [
            ("", "/"),
            ("/", "/"),
            ("a", "/a"),
            ("/a//b/", "/a/b"),
            ("/a/./b/../c", "/a/c"),
            ("/../..", "/"),
            ("/a/...", "/a/..."),
        ] {
            assert_eq!(clean(dirty), tidy, "{dirty:?}");
        }
        assert_eq!(clean_url("/a//b/"), "/a/b/");
        assert_eq!(clean_url("//"), "/");
    }

    #[test]
    fn hidden_is_seen_from_where_one_watches() {
        assert!(is_hidden("/", "/_a"));
        assert!(is_hidden("/1", "/1/b/_a/c"));
        assert!(!is_hidden("/1/_a", "/1/_a/c"));
        assert!(!is_hidden("/1/b/c", "/1/b"));
    }
}
