use super::*;
use release::tuf::{Code, Trusted, TufError};

/// Clocks have fractions of seconds, and metadata has none.
fn now() -> Time {
    "2026-11-25T00:00:00.7762Z".parse().unwrap()
}

/// What python-tuf, which is none of ours, makes of the directory. `./orlop test` puts it into `.orlop/tools/python`;
/// without it there is no judge, and this says so, or fails if `ORLOP_JUDGES=required`.
fn judged(dir: &Path, first: &Path, target: &str) -> Option<String> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let tools = top.join(".orlop/tools/python");
    if !tools.join("tuf").is_dir() {
        let left_out = format!("python-tuf is not in {}: not judged", tools.display());
        let required = std::env::var_os("ORLOP_JUDGES").is_some_and(|it| it == "required");
        assert!(!required, "{left_out}");
        eprintln!("{left_out}");
        return None;
    }
    let cache = tempfile::tempdir().unwrap();
    fs::create_dir(cache.path().join("targets")).unwrap();
    let output = std::process::Command::new("python3")
        .env("PYTHONPATH", tools)
        .arg(top.join("tests/judge-tuf.py"))
        .arg(format!("{}/", dir.join("repository").display()))
        .args([first, cache.path(), Path::new(target), Path::new("")])
        .output()
        .unwrap();
    let problem = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{problem}");
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// What a host with the first root makes of the directory.
fn followed(dir: &Path, first: &[u8], now: Time) -> Result<Targets, TufError> {
    let get = |name: &str| fs::read(dir.join("repository").join(name)).unwrap_or_default();
    let mut trusted = Trusted::new(first, now, false)?;
    while dir.join("repository").join(trusted.next_root()).exists() {
        trusted.update_root(&get(&trusted.next_root()))?;
    }
    trusted.finish_root()?;
    trusted.update_timestamp(&get("timestamp.json"), None)?;
    trusted.update_snapshot(&get(&trusted.snapshot_file().unwrap().0), None)?;
    trusted.update_targets(&get(&trusted.targets_file("targets").unwrap().0))?;
    let stable = get(&trusted.targets_file("stable").unwrap().0);
    let one = "stable/1.manifest.dsse.json";
    trusted
        .target("stable", &stable, one)?
        .check(one, &get(one))?;
    let signed: Signed = serde_json::from_slice(&stable).unwrap();
    Ok(serde_json::from_value(signed.signed).unwrap())
}

fn release_dir(dir: &Path) -> PathBuf {
    let file = |name: &str| release::File {
        name: name.parse().unwrap(),
        size: 1,
        sha256: release::Sha256::of(name),
    };
    let manifest = release::Manifest {
        format: release::Manifest::FORMAT,
        version: "1".parse().unwrap(),
        epoch: 0,
        minimum_source_version: None,
        architecture: "x86-64".into(),
        created: 0,
        usr: release::Usr {
            root_hash: release::Sha256::of("root"),
            size: 4096,
            payload: release::Payload {
                file: file("usr"),
                compression: release::Compression::Zstd,
            },
            index: None,
        },
        uki: file("uki"),
        kernel: None,
        deltas: Vec::new(),
        extensions: Vec::new(),
        sbom: None,
    };
    let key = generate().unwrap();
    let envelope = release::dsse::Envelope::sign(&manifest, &key).unwrap();
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join(MANIFEST_FILE), envelope.to_json().unwrap()).unwrap();
    dir.into()
}

#[test]
fn hosts_follow_every_rotation() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("tuf");
    let stable = Channel::stable();
    let life = Lifetimes::default();
    let it = Repository::init(&dir, std::slice::from_ref(&stable), life, now()).unwrap();
    assert!(
        Repository::init(&dir, &[], life, now()).is_err(),
        "keys are never overwritten"
    );
    let first = fs::read(it.root_file().unwrap()).unwrap();
    assert_eq!(
        followed(&dir, &first, now()).unwrap_err().code(),
        Code::NoTarget
    );
    let release = release_dir(&tmp.path().join("release"));
    it.add(&stable, &release, now()).unwrap();
    followed(&dir, &first, now()).unwrap();
    for holder in [
        "online",
        "targets",
        "channel-stable",
        "root-1",
        "root-3",
        "root-1",
    ] {
        it.rotate(&holder.parse().unwrap(), false, now()).unwrap();
        followed(&dir, &first, now()).unwrap_or_else(|e| panic!("{holder}: {e}"));
    }

    // A week without the online key: hosts notice. With it, all is well again.
    let later = now() + (24 * 7).hours();
    assert_eq!(
        followed(&dir, &first, later).unwrap_err().code(),
        Code::Expired
    );
    it.refresh(later).unwrap();
    followed(&dir, &first, later).unwrap();
    it.withdraw(&stable, &"1".parse().unwrap(), later).unwrap();
    assert_eq!(
        followed(&dir, &first, later).unwrap_err().code(),
        Code::NoTarget
    );
}

#[test]
fn a_lost_key_is_replaced_but_not_one_that_is_only_elsewhere() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("tuf");
    let stable = Channel::stable();
    let life = Lifetimes::default();
    let it = Repository::init(&dir, std::slice::from_ref(&stable), life, now()).unwrap();
    let first = fs::read(it.root_file().unwrap()).unwrap();
    let release = release_dir(&tmp.path().join("release"));
    it.add(&stable, &release, now()).unwrap();
    for name in ["root-2", "online", "targets", "channel-stable", "root-1"] {
        let holder: Holder = name.parse().unwrap();
        let path = it.key_path(&holder);
        fs::remove_file(&path).unwrap();
        let error = it.rotate(&holder, false, now()).unwrap_err().to_string();
        assert!(error.contains("--lost"), "{name}: {error}");
        assert!(!path.exists());
        it.rotate(&holder, true, now()).unwrap();
        assert!(path.exists());
        followed(&dir, &first, now()).unwrap_or_else(|e| panic!("{name}: {e}"));
    }

    // Of three root keys one may be lost, and a key that nobody knows does not stand in for another.
    for n in [1, 2] {
        fs::remove_file(it.key_path(&Holder::Root(n))).unwrap();
    }
    let pem = to_pem(&generate().unwrap()).unwrap();
    fs::write(it.key_path(&Holder::Root(1)), pem).unwrap();
    let error = it.rotate(&Holder::Root(2), true, now()).unwrap_err();
    assert!(
        error.to_string().contains("2 root keys, 1 are in"),
        "{error}"
    );
    followed(&dir, &first, now()).unwrap();
    let unknown = it.rotate(&"channel-beta".parse().unwrap(), true, now());
    let error = unknown.unwrap_err().to_string();
    assert!(error.contains("no channel beta"), "{error}");
}

#[test]
fn a_channel_does_not_take_the_place_of_tufs_own_roles() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("tuf");
    let (stable, life) = (Channel::stable(), Lifetimes::default());
    let it = Repository::init(&dir, std::slice::from_ref(&stable), life, now()).unwrap();
    let first = fs::read(it.root_file().unwrap()).unwrap();
    let release = release_dir(&tmp.path().join("release"));
    it.add(&stable, &release, now()).unwrap();
    for name in ["root", "targets", "snapshot", "timestamp"] {
        let channel: Channel = name.parse().unwrap();
        let version = "1".parse().unwrap();
        let refused = [
            it.publish(&channel, &release, now()).map(drop),
            it.promote(&stable, &channel, &version, now()).map(drop),
            it.ensure_channel(&channel, now()),
            Repository::init(&tmp.path().join(name), &[channel], life, now()).map(drop),
        ];
        for refused in refused {
            let error = refused.unwrap_err().to_string();
            assert!(error.contains("cannot be a channel here"), "{error}");
        }
        assert!(!tmp.path().join(name).join("offline").exists());
    }
    followed(&dir, &first, now()).unwrap();
}

/// By today's clock, which is the only one that it takes.
#[test]
fn python_tuf_follows_every_rotation_too() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("tuf");
    let (stable, life, now) = (Channel::stable(), Lifetimes::default(), Time::now());
    let it = Repository::init(&dir, std::slice::from_ref(&stable), life, now).unwrap();
    let first = tmp.path().join("first.json");
    fs::copy(it.root_file().unwrap(), &first).unwrap();
    let target = "stable/1.manifest.dsse.json";
    if let Some(verdict) = judged(&dir, &first, target) {
        assert_eq!(verdict, "KeyError", "there is no release yet");
        it.add(&stable, &release_dir(&tmp.path().join("release")), now)
            .unwrap();
        assert_eq!(judged(&dir, &first, target).unwrap(), "accepted");
        for holder in ["online", "targets", "channel-stable", "root-1"] {
            it.rotate(&holder.parse().unwrap(), false, now).unwrap();
            assert_eq!(
                judged(&dir, &first, target).unwrap(),
                "accepted",
                "{holder}"
            );
        }
    }
}

/// The machine that renews timestamps has one key, and can do nothing else with it.
#[test]
fn online_and_offline_are_apart() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("tuf");
    let stable = Channel::stable();
    let life = Lifetimes::default();
    drop(Repository::init(&dir, std::slice::from_ref(&stable), life, now()).unwrap());
    let offline = tmp.path().join("medium");
    fs::create_dir(&offline).unwrap();
    for entry in fs::read_dir(dir.join("offline")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "pem") {
            fs::create_dir_all(offline.join("offline")).unwrap();
            fs::rename(
                &path,
                offline.join("offline").join(path.file_name().unwrap()),
            )
            .unwrap();
        }
    }
    let it = Repository::open(&dir, None, life).unwrap();
    it.refresh(now()).unwrap();
    let release = release_dir(&tmp.path().join("release"));
    let error = format!("{:#}", it.add(&stable, &release, now()).unwrap_err());
    assert!(error.contains("channel-stable.pem"), "{error}");
    let error = it
        .rotate(&Holder::Online, false, now())
        .unwrap_err()
        .to_string();
    assert!(error.contains("2 root keys, 0 are in"), "{error}");
    drop(it);

    // With the medium all can sign, while the online key stays where it was.
    let it = Repository::open(&dir, Some(&offline), life).unwrap();
    it.add(&stable, &release, now()).unwrap();
    for holder in ["channel-stable", "online", "root-2"] {
        it.rotate(&holder.parse().unwrap(), false, now()).unwrap();
    }
    assert!(dir.join("online/online.pem").exists());
    for nowhere in [offline.join("online"), dir.join("offline/root-2.pem")] {
        assert!(!nowhere.exists(), "{}", nowhere.display());
    }
}

/// What a server is given is a whole repository: a channel that was not there before, a promotion, a
/// withdrawal and its end.
#[test]
fn publishing_needs_no_preparation() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("tuf");
    let life = Lifetimes::default();
    let it = Repository::open_or_init(&dir, None, life, now()).unwrap();
    let first = fs::read(it.root_file().unwrap()).unwrap();
    let release = release_dir(&tmp.path().join("release"));
    let (lab, stable): (Channel, Channel) = ("lab".parse().unwrap(), Channel::stable());
    let one: Version = "1".parse().unwrap();
    it.publish(&lab, &release, now()).unwrap();
    assert!(
        it.promote(&stable, &lab, &one, now()).is_err(),
        "stable has none"
    );
    it.promote(&lab, &stable, &one, now()).unwrap();
    followed(&dir, &first, now()).unwrap();

    let sent = tmp.path().join("sent");
    let names: Vec<String> = it
        .files()
        .unwrap()
        .into_iter()
        .map(|(name, bytes)| {
            let path = sent.join("repository").join(&name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
            name
        })
        .collect();
    assert_eq!(names.last().unwrap(), "timestamp.json");
    followed(&sent, &first, now()).unwrap();

    assert_eq!(it.withdraw_all(&one, now()).unwrap().len(), 2);
    let error = followed(&dir, &first, now()).unwrap_err();
    assert_eq!(error.code(), Code::NoTarget);
    assert_eq!(it.restore(&one, now()).unwrap().len(), 2);
    followed(&dir, &first, now()).unwrap();

    // Another build of the version: only where a server says which one counts.
    let path = release.join(MANIFEST_FILE);
    let mut bytes = fs::read(&path).unwrap();
    bytes.push(b'\n');
    fs::write(&path, bytes).unwrap();
    assert!(it.add(&stable, &release, now()).is_err());
    it.publish(&stable, &release, now()).unwrap();
    followed(&dir, &first, now()).unwrap();

    // Half a year later all of it is signed again, the root too.
    let later = now() + (24 * 200).hours();
    assert_eq!(
        followed(&dir, &first, later).unwrap_err().code(),
        Code::Expired
    );
    it.renew(later).unwrap();
    assert!(it.root_file().unwrap().ends_with("2.root.json"));
    followed(&dir, &first, later).unwrap();
}

#[test]
fn an_exported_tree_is_whole_and_says_whose_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (stable, life) = ("stable".parse().unwrap(), Lifetimes::default());
    let release = release_dir(&dir.path().join("release"));
    fs::write(release.join("usr"), "u").unwrap();
    fs::write(release.join("uki"), "k").unwrap();
    let it = Repository::open_or_init(&dir.path().join("tuf"), None, life, now()).unwrap();
    let first = fs::read(it.root_file().unwrap()).unwrap();
    let to = dir.path().join("stick");
    let error = it.export(&release, &to).unwrap_err().to_string();
    assert!(error.contains("no channel has this build"), "{error}");
    assert!(!to.exists());
    it.publish(&stable, &release, now()).unwrap();
    let (channels, bytes) = it.export(&release, &to).unwrap();
    assert_eq!((channels, bytes), (vec!["stable".to_owned()], 2));
    assert_eq!(fs::read(to.join("1/uki")).unwrap(), b"k");
    // Under the name that `followed` looks at.
    fs::rename(to.join("tuf"), to.join("repository")).unwrap();
    followed(&to, &first, now()).unwrap();

    // A copy of the repository goes on where this one is.
    it.copy_to(&dir.path().join("copy")).unwrap();
    let copy = Repository::open(&dir.path().join("copy"), None, life).unwrap();
    copy.refresh(now()).unwrap();
    followed(&dir.path().join("copy"), &first, now()).unwrap();
}
