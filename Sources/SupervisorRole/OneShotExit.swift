/// Exit codes of the one-shot children, beyond 0 (all done) and 1 (failed).
public enum OneShotExit {
    /// `db upgrade --at-start`: it failed, and the schema that is there will do.
    public static let oldSchemaUsable: Int32 = 3
    /// `db check --at-start`: pages, rows or indexes are damaged.
    public static let damaged: Int32 = 4
    /// What stands in the way is for an operator to change; starting again would meet the same (EX_CONFIG of sysexits.h). The server ends
    /// with it too, so that a service manager need not try (RestartPreventExitStatus).
    public static let needsOperator: Int32 = 78
}
