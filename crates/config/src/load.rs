//! Files and environment, one layer over the other.

use std::path::PathBuf;

use crate::{
    document::Document,
    environment,
    error::{ConfigError, ConfigErrors, Origin, Problem},
    settings::{Conflict, Settings},
    tree::{Setter, Tree},
};

impl Settings {
    /// The defaults, overridden key by key by the files in their order and then by the `MCPSCOPE_*` variables among `env`.
    ///
    /// Reads the files (1 MiB at most) and nothing else: [`environment`](crate::environment) reads the variables of the
    /// process. A list in a later layer takes the place of the earlier one as a whole.
    ///
    /// # Errors
    /// Everything that is wrong in all files and variables at once, each with its place: up to 100 errors a file, but one
    /// only for a file that cannot be read or is not YAML.
    pub fn load(files: &[PathBuf], env: impl IntoIterator<Item = (String, String)>) -> Result<Self, ConfigErrors> {
        Self::load_with_places(files, env).map(|(settings, _)| settings)
    }

    /// The same, and where each setting was written.
    ///
    /// # Errors
    /// As of [`Settings::load`].
    pub fn load_with_places(
        files: &[PathBuf],
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(Self, Places), ConfigErrors> {
        let mut tree = Tree::new();
        let mut errors = Vec::new();
        let mut documents = Vec::new();
        for (file, path) in files.iter().enumerate() {
            let document = Document::read(path).map(|mut document| {
                document.apply(file, &mut tree, &mut errors);
                document
            });
            documents.push(document.map_err(|error| errors.push(error)).ok());
        }
        environment::apply(env, &mut tree, &mut errors);
        let places = Places { tree, documents };
        let tree = &places.tree;
        for conflict in tree.settings.conflicts() {
            // A refused value left the default in its place, and that proves nothing.
            if !conflict.paths.iter().any(|path| tree.was_refused(path)) {
                errors.extend(located(&conflict, tree, &places.documents));
            }
        }
        if errors.is_empty() { Ok((tree.settings.clone(), places)) } else { Err(ConfigErrors(errors)) }
    }
}

/// Where settings were written.
#[derive(Debug)]
pub struct Places {
    tree: Tree,
    documents: Vec<Option<Document>>,
}

impl Places {
    /// What turned out to be wrong with a setting later on, such as the content of a file that it names, by its key (such as
    /// `tls.key_file`): an error like any other, with its place. None if it was set nowhere.
    #[must_use]
    pub fn refuse(&self, key: &'static str, message: String) -> Option<ConfigError> {
        located(&Conflict { paths: [key, key], message }, &self.tree, &self.documents)
    }
}

/// The conflict as an error at the first of its keys that was set at all.
fn located(conflict: &Conflict, tree: &Tree, documents: &[Option<Document>]) -> Option<ConfigError> {
    let (path, setter) = conflict.paths.iter().find_map(|path| Some((path, tree.setter(path)?)))?;
    match setter {
        Setter::File { file, key } => Some(documents.get(*file)?.as_ref()?.refuse(*key, path, &conflict.message)),
        Setter::Variable(name) => Some(ConfigError {
            origin: Origin::Variable(name.clone()),
            path: Some((*path).to_owned()),
            problem: Problem::Invalid(conflict.message.clone()),
        }),
    }
}
