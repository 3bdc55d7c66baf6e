//! Files and environment, one layer over the other.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{
    chaos::ChaosSettings,
    document::Document,
    environment::Variables,
    error::{ConfigError, ConfigErrors, Origin, Problem},
    root::Root,
    settings::{Chaos, Settings},
    tree::{Setter, Tree},
};

const CHAOS_FILE: &str = "chaos.file";

/// Everything that is configured, checked.
#[derive(Debug)]
pub struct Configuration {
    /// What the configuration files say.
    pub settings: Settings,
    /// What the chaos file says, which `settings.chaos.file` names.
    pub chaos: ChaosSettings,
    /// Where each key of both was written.
    pub places: Places,
    /// All files that it depends on, also those that are not there.
    pub files: Vec<PathBuf>,
}

impl Configuration {
    /// The defaults, overridden key by key by the files in their order and then by the `MCPSCOPE_*` variables among `env`.
    ///
    /// Reads these files, the chaos file (1 MiB each at most) and nothing else: [`environment`](crate::environment) reads the
    /// variables of the process. A list in a later layer takes the place of the earlier one as a whole.
    ///
    /// # Errors
    /// Everything that is wrong in all files and variables at once, each with its place: up to 100 errors a file, but one
    /// only for a file that cannot be read or is not YAML. A chaos file of the default's name need not be there.
    pub fn load(files: &[PathBuf], env: impl IntoIterator<Item = (String, String)>) -> Result<Self, ConfigErrors> {
        let variables = Variables::new(env);
        let (mut settings, mut chaos) = (Side::<Settings>::new(), Side::<ChaosSettings>::new());
        let mut errors = Vec::new();
        for path in files {
            settings.read(Document::read(path), &mut errors);
        }
        let mut of_variables = variables.apply(&mut settings.tree);

        let places = settings.chaos_files(files);
        let document = settings.chaos_document(&places);
        if let Some(document) = document {
            chaos.read(document, &mut errors);
        }
        of_variables.extend(variables.apply(&mut chaos.tree));
        of_variables.extend(variables.unknown(&settings.tree, &chaos.tree));
        of_variables.sort_by(|(one, _), (other, _)| one.cmp(other));
        errors.extend(of_variables.into_iter().map(|(_, error)| error));

        errors.extend(settings.conflicts());
        errors.extend(chaos.conflicts());
        let files = [files, &places].concat();
        if !errors.is_empty() {
            return Err(ConfigErrors { errors, files });
        }
        let (plan, settings_read) = (chaos.tree.settings.clone(), settings.tree.settings.clone());
        Ok(Self { settings: settings_read, chaos: plan, places: Places { settings, chaos }, files })
    }
}

impl Settings {
    /// The settings of [`Configuration::load`], without what else that gives.
    ///
    /// # Errors
    /// As of [`Configuration::load`].
    pub fn load(files: &[PathBuf], env: impl IntoIterator<Item = (String, String)>) -> Result<Self, ConfigErrors> {
        Configuration::load(files, env).map(|configuration| configuration.settings)
    }
}

/// Where settings were written.
#[derive(Debug)]
pub struct Places {
    settings: Side<Settings>,
    chaos: Side<ChaosSettings>,
}

impl Places {
    /// What turned out to be wrong with a setting later on, such as the content of a file that it names, by its key (such as
    /// `tls.key_file` or `scenarios[0].parameters.delay`): an error like any other, with its place. What is inside of a list and
    /// was not written has the place of what it is inside of. None if it was set nowhere.
    #[must_use]
    pub fn refuse(&self, mut key: &str, message: &str) -> Option<ConfigError> {
        loop {
            let found = self.settings.refuse(&[key], message).or_else(|| self.chaos.refuse(&[key], message));
            if found.is_some() {
                return found;
            }
            key = &key[..key.rfind(['.', '['])?];
        }
    }

    /// A file as it is meant that a setting, by its key, names: from where the configuration file is that has it, or as it is
    /// where a variable has it.
    #[must_use]
    pub fn resolve(&self, key: &str, file: &Path) -> PathBuf {
        self.settings.folder(key).or_else(|| self.chaos.folder(key)).map_or_else(|| file.to_owned(), |at| at.join(file))
    }
}

/// One tree of settings, and what it was read from.
#[derive(Debug)]
pub(crate) struct Side<T> {
    pub(crate) tree: Tree<T>,
    documents: Vec<Option<Document>>,
}

impl<T: Root> Side<T> {
    pub(crate) fn new() -> Self {
        Self { tree: Tree::new(), documents: Vec::new() }
    }

    /// Applies a file, if it could be read.
    pub(crate) fn read(&mut self, document: Result<Document, ConfigError>, errors: &mut Vec<ConfigError>) {
        let document = document.map(|mut document| {
            document.apply(self.documents.len(), &mut self.tree, errors);
            document
        });
        self.documents.push(document.map_err(|error| errors.push(error)).ok());
    }

    /// What is wrong between settings that are right each for themselves.
    fn conflicts(&mut self) -> Vec<ConfigError> {
        self.tree.pair_twins();
        let conflicts = self.tree.settings.conflicts().into_iter();
        // A refused value left the default in its place, and that proves nothing.
        let conflicts = conflicts.filter(|conflict| !conflict.paths.iter().any(|path| self.tree.was_refused(path)));
        conflicts.filter_map(|conflict| self.refuse(&conflict.paths, &conflict.message)).collect()
    }

    /// An error at the first of these keys that was set at all.
    pub(crate) fn refuse(&self, paths: &[&str], message: &str) -> Option<ConfigError> {
        let (path, setter) = paths.iter().find_map(|path| Some((path, self.tree.setter(path)?)))?;
        match setter {
            Setter::File { file, key } => Some(self.documents.get(*file)?.as_ref()?.refuse::<T>(*key, path, message)),
            Setter::Variable(name) => Some(ConfigError {
                origin: Origin::Variable(name.clone()),
                path: Some((*path).to_owned()),
                problem: Problem::Invalid(message.to_owned()),
            }),
        }
    }

    /// Where the file is that has this key.
    fn folder(&self, key: &str) -> Option<&Path> {
        let Setter::File { file, .. } = self.tree.setter(key)? else { return None };
        self.documents.get(*file)?.as_ref()?.path().parent()
    }
}

impl Side<Settings> {
    /// Where the chaos file is looked for. Nobody's working directory is: what is called like that there may be anything.
    fn chaos_files(&self, files: &[PathBuf]) -> Vec<PathBuf> {
        let name = &self.tree.settings.chaos.file;
        match (self.tree.setter(CHAOS_FILE), self.folder(CHAOS_FILE)) {
            (Some(_), Some(folder)) => vec![folder.join(name)],
            (Some(_), None) => vec![name.clone()],
            (None, _) => {
                let mut places: Vec<PathBuf> = Vec::new();
                for place in files.iter().rev().filter_map(|file| Some(file.parent()?.join(name))) {
                    if !places.contains(&place) {
                        places.push(place);
                    }
                }
                places
            }
        }
    }

    /// The chaos file, or what is wrong with it; nothing where it is left out, as one of the default's name may be.
    fn chaos_document(&self, places: &[PathBuf]) -> Option<Result<Document, ConfigError>> {
        let may_be_absent = self.tree.settings.chaos.file == Chaos::default().file;
        places.iter().find_map(|path| match Document::read(path) {
            Err(ConfigError { problem: Problem::Unreadable(error), .. }) if may_be_absent && is_absent(&error) => None,
            Err(ConfigError { problem: Problem::Unreadable(source), origin, path: whole }) => {
                // Where it is named, if it is, which is where the mistake is.
                Some(Err(match self.refuse(&[CHAOS_FILE], "") {
                    Some(named) => ConfigError { problem: Problem::Named { file: path.clone(), source }, ..named },
                    None => ConfigError { problem: Problem::Unreadable(source), origin, path: whole },
                }))
            }
            read => Some(read),
        })
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
