//! A Linux that is a program (User-mode Linux), for the faults that take what the kernel of this machine may not have.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Place, Provided, apt, expect_file};
use crate::command::{on_path, version_of};

/// What the tests load into it.
const MODULES: [&str; 2] = ["sch_prio", "sch_netem"];

/// The kernel, the folder of its modules, and the program that loads them.
struct Found {
    uml: PathBuf,
    modules: PathBuf,
    busybox: PathBuf,
}

pub(super) fn provide(place: &Place) -> Result<Provided> {
    let installed = on_path("linux.uml").zip(on_path("busybox"));
    let found = installed.and_then(|(uml, busybox)| found(uml, busybox, Path::new("/")).ok());
    let (what, Found { uml, modules, busybox }) = match found {
        Some(found) => ("as found", found),
        None if cfg!(any(target_arch = "x86", target_arch = "x86_64")) => {
            ("in target/test-env/uml", install(place).with_context(by_hand)?)
        }
        // Not even Debian's; the one test that needs it says so.
        None => return Ok(Provided::tool("none for this architecture")),
    };
    let version = version_of(&uml).context("linux.uml does not run")?;
    let vars = vec![("E2E_UML", uml), ("E2E_UML_MODULES", modules), ("E2E_BUSYBOX", busybox)];
    Ok(Provided { what: format!("{version}, {what}"), vars })
}

fn by_hand() -> String {
    "put linux.uml and busybox on PATH, with the kernel's modules in /usr/lib/uml/modules (Debian's packages \
     `user-mode-linux` and `busybox-static`)"
        .to_owned()
}

fn install(place: &Place) -> Result<Found> {
    let in_folder = |folder: &Path| found(folder.join("usr/bin/linux.uml"), folder.join("bin/busybox"), folder);
    let folder = place.once("uml", "Debian's user-mode-linux and busybox-static, unpacked", |folder| {
        apt::unpack("user-mode-linux", folder)?;
        apt::unpack("busybox-static", folder)?;
        in_folder(folder).map(drop)
    })?;
    in_folder(&folder)
}

/// With the modules of this very kernel.
fn found(uml: PathBuf, busybox: PathBuf, root: &Path) -> Result<Found> {
    let version = version_of(&uml).context("linux.uml does not run")?;
    let modules = root.join("usr/lib/uml/modules").join(version.to_string());
    for module in MODULES {
        expect_file(modules.join("kernel/net/sched").join(module).with_extension("ko"))?;
    }
    Ok(Found { uml, modules, busybox: expect_file(busybox)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_whole_is_not_taken() {
        let nowhere = Path::new("/nonexistent");
        assert!(found(nowhere.join("linux.uml"), nowhere.join("busybox"), nowhere).is_err());
        // It runs, and has a version; its modules are not there.
        let error = found(on_path("cargo").unwrap(), nowhere.join("busybox"), nowhere).err().unwrap();
        assert!(error.to_string().contains("sch_prio.ko"), "{error}");
    }
}
