//! Names: of members and clients, and of hosts in certificates.

use std::net::IpAddr;

use rcgen::SanType;

use super::Error;

/// A name becomes a directory and a common name, which has room for 64.
pub(crate) fn check(name: &str) -> Result<(), Error> {
    let fine = (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        && !name.starts_with(['.', '-']);
    if fine {
        Ok(())
    } else {
        Err(Error::Name(name.into()))
    }
}

/// An address or a DNS name, as certificates have them.
pub(crate) fn host(host: &str) -> Result<SanType, Error> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let hint = if host.contains("://") {
        "; leave the scheme out"
    } else if host.contains(':') {
        "; leave the port out"
    } else {
        ""
    };
    let labels = host.strip_prefix("*.").unwrap_or(host);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // What is all digits was meant to be an address.
    let numeric = labels.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let bad = || Error::Host(host.to_owned(), hint);
    if host.len() > 253 || numeric || !labels.split('.').all(label) {
        return Err(bad());
    }
    host.to_owned()
        .try_into()
        .map(SanType::DnsName)
        .map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_addresses_or_dns_names() {
        for good in ["10.0.0.1", "::1", "n1", "n1.example.org", "*.example.org"] {
            assert!(host(good).is_ok(), "{good}");
        }
        for (bad, hint) in [
            ("", ""),
            ("10.0.0", ""),
            ("n1:2380", "port"),
            ("http://n1", "scheme"),
            ("a b", ""),
            ("-n1", ""),
            ("n1.", ""),
            ("a.*.b", ""),
            ("ü", ""),
        ] {
            let error = host(bad).unwrap_err().to_string();
            assert!(error.contains(hint), "{bad}: {error}");
        }
    }

    #[test]
    fn names_stay_in_their_directory() {
        assert!(check("n1.example-org_2").is_ok());
        let long = "a".repeat(65);
        for bad in ["", ".", "..", "a/b", "-o", "a b", long.as_str()] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
