//! Tests through the front door: files and variables in, settings or errors out.

mod bad_files;
mod bad_variables;
mod chaos;
mod critical;
mod layers;
mod robust;
mod servers;
mod suite;

use std::{fs, path::PathBuf};

use crate::{ConfigErrors, Settings};

/// Loads files of these contents, called `a.yaml`, `b.yaml` and so on, and these variables.
fn load(files: &[&[u8]], variables: &[(&str, &str)]) -> Result<Settings, String> {
    let folder = tempfile::tempdir().unwrap();
    let paths: Vec<PathBuf> = (b'a'..)
        .zip(files)
        .map(|(name, content)| {
            let path = folder.path().join(format!("{}.yaml", char::from(name)));
            fs::write(&path, content).unwrap();
            path
        })
        .collect();
    load_from(&paths, variables).map_err(|errors| {
        assert!(!errors.errors().is_empty());
        errors.to_string().replace(&format!("{}/", folder.path().display()), "")
    })
}

fn load_from(paths: &[PathBuf], variables: &[(&str, &str)]) -> Result<Settings, ConfigErrors> {
    Settings::load(paths, variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
}
