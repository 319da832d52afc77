//! Everything that goes over the wire.

mod decision;
mod event;
mod host;
mod policy;
mod problem;
mod resources;
mod transfer;
mod vm;

pub use decision::{
    CoreEstimateInfo, DecidedMove, DecisionInfo, DecisionState, DecisionSummary, EstimateInfo, HistoryQuery,
    NodeEstimateInfo, Reason, RejectedInfo, VmOutlook,
};
pub use event::{Event, EventKind};
pub use host::{Account, CheckReport, CoreShare, HostInfo, LedgerInfo, NodeShare, Share, ViolationInfo};
pub use policy::{
    ModeOrder, PinAnswer, PinInfo, PinOrder, PolicyApplied, PolicyCheck, PolicyInfo, PolicyMode, PolicyProblem,
    PolicyText, PriorityInfo, TermsInfo, VmWhy,
};
pub use problem::{Code, Problem};
pub use resources::{CoreDemand, Demand, Holder, LoanInfo, MemoryDemand, Resources};
pub use transfer::{
    CoreChoice, Leg, Move, Plan, Remark, Shortfall, Stage, StageTime, Transfer, TransferAnswer, TransferOrder,
    TransferRequest, TransferState,
};
pub use vm::{
    AgentInfo, AgentState, CpuLoad, GateState, GuestInfo, GuestReport, NodeLoad, PressureInfo, ProcessInfo,
    ReleaseAnswer, StartAnswer, StartPlan, StartQuery, StopQuery, VcpuInfo, VmDetail, VmMemory, VmState, VmSummary,
};
