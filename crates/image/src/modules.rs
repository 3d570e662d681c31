//! Kernel modules: unpacked (a compressed module cannot be part of a small delta), indexed, and the
//! few that the initrd needs, in load order.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::lists::Item;
use crate::tools::Tools;
use crate::tree::{Node, Origin, Tree};

/// The kernel version of the tree: the one directory under `usr/lib/modules`.
pub(crate) fn kernel_version(tree: &Tree) -> Result<String> {
    let versions: BTreeSet<&str> = tree
        .iter()
        .filter_map(|(p, _)| p.strip_prefix("usr/lib/modules/")?.split('/').next())
        .collect();
    match versions.into_iter().collect::<Vec<_>>()[..] {
        [one] => Ok(one.to_owned()),
        [] => bail!("the packages contain no kernel"),
        ref many => bail!("the packages contain several kernels: {}", many.join(", ")),
    }
}

pub(crate) fn decompress(tree: &mut Tree) -> Result<()> {
    let packed: Vec<String> = tree
        .iter()
        .filter(|(p, _)| p.starts_with("usr/lib/modules/") && p.ends_with(".ko.xz"))
        .map(|(p, _)| p.to_owned())
        .collect();
    for path in packed {
        let Some(entry) = tree.remove(&path) else {
            continue;
        };
        if let Node::File { mode, data } = entry.node {
            let mut plain = Vec::new();
            std::io::copy(&mut liblzma::read::XzDecoder::new(&data[..]), &mut plain)
                .with_context(|| format!("cannot unpack {path}"))?;
            tree.file(path.trim_end_matches(".xz"), mode, plain, entry.origin);
        }
    }
    Ok(())
}

/// Runs depmod over the modules of `tree` and takes its index files in.
pub(crate) fn index(tree: &mut Tree, tools: &Tools, version: &str, work: &Path) -> Result<()> {
    let dir = work.join("depmod");
    let base = format!("usr/lib/modules/{version}");
    let mut modules = Tree::default();
    for (path, entry) in tree.iter().filter(|(p, _)| p.starts_with(&base)) {
        modules.insert(path, entry.node.clone(), entry.origin.clone());
    }
    modules.unpack(&dir)?;
    // depmod looks below /lib/modules.
    std::os::unix::fs::symlink("usr/lib", dir.join("lib"))?;
    tools.run("usr/sbin/depmod", |c| {
        c.arg("-b").arg(&dir).arg(version);
    })?;
    for entry in std::fs::read_dir(dir.join(&base))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // The text forms serve nobody once the binary index is there.
        let keep = name.ends_with(".bin")
            || [
                "modules.dep",
                "modules.softdep",
                "modules.builtin",
                "modules.devname",
            ]
            .contains(&name.as_str());
        let path = format!("{base}/{name}");
        if entry.file_type()?.is_file() && name.starts_with("modules.") {
            if keep {
                tree.file(
                    &path,
                    0o644,
                    std::fs::read(entry.path())?,
                    Origin::Generated,
                );
            } else {
                tree.remove(&path);
            }
        }
    }
    let aliases = std::fs::read_to_string(dir.join(&base).join("modules.alias"))?;
    tree.file("modules.alias", 0o644, aliases, Origin::Generated);
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

/// What the initrd loads: files in order, each with the device aliases that call for it (none: always).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Load {
    pub path: String,
    pub aliases: Vec<String>,
    /// Only needed once /usr is mounted, so it stays there and makes the initrd smaller.
    pub from_usr: bool,
}

/// Resolves `os/initrd-modules`: `name [+companion …]  # why`, `always name  # why`, or
/// `late name  # why` for what is loaded out of /usr.
pub(crate) fn initrd_plan(
    tree: &Tree,
    version: &str,
    wanted: &[Item],
    aliases: &str,
) -> Result<Vec<Load>> {
    let base = format!("usr/lib/modules/{version}/");
    let dep = tree.read(&format!("{base}modules.dep"))?;
    let dep = String::from_utf8_lossy(&dep).into_owned();
    let mut by_name = BTreeMap::new();
    let mut needs = BTreeMap::new();
    for line in dep.lines() {
        let Some((path, list)) = line.split_once(':') else {
            continue;
        };
        by_name.insert(module_name(path), path.to_owned());
        needs.insert(
            path.to_owned(),
            list.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>(),
        );
    }
    let builtin_list = tree
        .read(&format!("{base}modules.builtin"))
        .unwrap_or_default();
    let builtin_list = String::from_utf8_lossy(&builtin_list).into_owned();
    let builtin = |name: &str| builtin_list.lines().any(|line| module_name(line) == name);
    let mut plan: Vec<Load> = Vec::new();
    let mut add = |path: &str, aliases: &[String], from_usr: bool| match plan
        .iter_mut()
        .find(|l| l.path == path)
    {
        Some(load) if load.aliases.is_empty() || aliases.is_empty() => load.aliases.clear(),
        Some(load) => load.aliases.extend(aliases.iter().cloned()),
        None => plan.push(Load {
            path: path.to_owned(),
            aliases: aliases.to_vec(),
            from_usr,
        }),
    };
    for item in wanted {
        let (always, late, spec) = match item.name.split_once(' ') {
            Some(("always", rest)) => (true, false, rest),
            Some(("late", rest)) => (true, true, rest),
            _ => (false, false, item.name.as_str()),
        };
        let mut names = spec
            .split_whitespace()
            .map(|n| n.trim_start_matches('+').replace('-', "_"));
        let Some(first) = names.next() else { continue };
        let alias: Vec<String> = if always {
            Vec::new()
        } else {
            aliases
                .lines()
                .filter_map(|l| l.strip_prefix("alias ")?.rsplit_once(' '))
                .filter(|(_, module)| module.replace('-', "_") == first)
                .map(|(pattern, _)| pattern.to_owned())
                .collect()
        };
        for name in std::iter::once(first).chain(names) {
            let Some(path) = by_name.get(&name) else {
                if builtin(&name) {
                    continue;
                }
                bail!("os/initrd-modules: the kernel {version} has no module {name}");
            };
            if !always && alias.is_empty() {
                bail!("os/initrd-modules: {name} names no device; write `always {name}`");
            }
            // modules.dep lists what to load first last.
            for dependency in needs.get(path).into_iter().flatten().rev() {
                add(dependency, &alias, late);
            }
            add(path, &alias, late);
        }
    }
    Ok(plan)
}

fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Tree {
        let mut t = Tree::default();
        let dep =
            "kernel/a.ko:\nkernel/b-x.ko: kernel/c.ko kernel/a.ko\nkernel/c.ko: kernel/a.ko\n";
        t.file(
            "usr/lib/modules/6.1/modules.dep",
            0o644,
            dep,
            Origin::Generated,
        );
        t
    }

    fn plan(list: &str) -> Result<Vec<String>> {
        let items = crate::lists::parse(list, "os/initrd-modules")?;
        let alias = "alias pci:v1* b_x\n";
        let plan = initrd_plan(&tree(), "6.1", &items, alias)?;
        Ok(plan
            .into_iter()
            .map(|l| format!("{} {}", l.path, l.aliases.join(",")))
            .collect())
    }

    #[test]
    fn dependencies_come_first_and_always_wins() {
        assert_eq!(
            plan("b-x # x\nalways a # y").unwrap(),
            [
                "kernel/a.ko ",
                "kernel/c.ko pci:v1*",
                "kernel/b-x.ko pci:v1*"
            ]
        );
    }

    #[test]
    fn late_modules_stay_in_usr_unless_the_initrd_has_them() {
        let items = crate::lists::parse("always a # x\nlate b-x # y\n", "f").unwrap();
        let plan = initrd_plan(&tree(), "6.1", &items, "").unwrap();
        let plan: Vec<_> = plan.iter().map(|l| (l.path.as_str(), l.from_usr)).collect();
        assert_eq!(
            plan,
            [
                ("kernel/a.ko", false),
                ("kernel/c.ko", true),
                ("kernel/b-x.ko", true)
            ]
        );
    }

    #[test]
    fn unknown_and_unbound_modules_are_errors() {
        assert!(
            plan("zzz # x")
                .unwrap_err()
                .to_string()
                .contains("has no module zzz")
        );
        assert!(plan("a # x").unwrap_err().to_string().contains("always a"));
    }
}
