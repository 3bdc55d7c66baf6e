#![doc = include_str!("../README.md")]

mod audit;
mod catalogue;
mod controller;
mod directory;
mod draw;
mod experiment;
mod fault;
pub mod guardian;
pub mod helper;
mod injector;
mod journal;
mod lease;
mod matcher;
mod message;
mod network;
mod outage;
mod outlook;
mod parameter;
mod plan;
pub mod process;
mod refusal;
mod replay;
mod report;
mod run;
mod scenario;
mod scheduler;
mod series;
mod state;
mod status;
mod steady;
mod target;

pub use audit::{Audit, Child, ChildRole, Footprint, LeakAudit};
pub use controller::{Controller, Parts, new};
pub use experiment::Request;
pub use injector::{Connection, Endpoint, Injector, Lane};
pub use journal::{Header, HitRecord, Journal, JournalError, JournalLimits, Record, Swept, VERSION as JOURNAL_VERSION};
pub use lease::Watch;
pub use message::{Message, MessageKind};
pub use network::{Detour, Network, Packets};
pub use outage::Outage;
pub use outlook::{CrashOutlook, ExpectedHits, Outlook, ProcessOutlook, ResourceOutlook, Traffic};
pub use parameter::{Kind, Parameter, ParameterError, Parameters};
pub use plan::{BlastRadius, Mode, Plan, PlanError, Rearm, ScenarioPlan};
pub use refusal::{NotRunning, RearmError, Refusal};
pub use replay::{Divergence, Recording, ReplayError};
pub use report::{Injected, OutageReport, RecoveryReport, Report, Slot};
pub use scenario::{Defaults, Impact, Scenario};
pub use series::Point;
pub use status::{Cause, ChaosStatus, Details, Event, Happened, StartedBy, Status, Test};
pub use steady::{Check, CheckError, Comparison, Sample, SteadyState, Subject, Touched, Window};
pub use target::{
    Achieved, ChaosTarget, Crash, Ended, Foresight, Order, ProcessId, Progress, ProtectedNames, TargetError, Unit,
    Victim,
};
