package core

var (
	anyFault = []fault{
		crashProcess, rebootNode, breakConn, killHolder, powerLoss, swapBefore, swapAfter, swapLate, fullPool, brokenDisk, takeOver, silence, storeBack, cutOff,
	}
	anyRequest = []shape{{Change, 0, 1}, {Flush, 0, 0}, {Read, 0, 1}}
	aChange    = []shape{{Change, 0, 1}}
	flushes    = []shape{{Flush, 0, 0}}
)

// settings are the small worlds. A budget of two faults of any kind covers every
// pair of them.
var settings = []setting{
	{
		name: "replaced under an old writer", replicas: 2, size: 1, limit: 1_000_000, away: true, overtaken: true, opened: true,
		budget: budget{faults: 1, holders: 3, ops: 2, closes: 1, replaces: 1, atOnce: 1},
		shapes: aChange, faults: []fault{brokenDisk, killHolder},
	},
	{
		name: "read by two", replicas: 2, size: 1, opened: true, limit: 200_000,
		budget: budget{faults: 2, holders: 2, ops: 3, atOnce: 1}, apart: true,
		shapes: []shape{{Change, 0, 1}, {Read, 0, 1}}, faults: []fault{takeOver, cutOff},
	},
	{
		name: "two dirty regions", replicas: 2, size: 2, fine: true, opened: true, limit: 200_000,
		budget: budget{faults: 2, holders: 3, ops: 3, atOnce: 1},
		shapes: []shape{{Change, 0, 2}, {Read, 1, 1}}, faults: []fault{killHolder},
	},
	{
		name: "opening and closing", replicas: 2, size: 1, limit: 200_000,
		budget: budget{faults: 1, holders: 2, ops: 1, closes: 1, atOnce: 1},
		shapes: aChange, faults: anyFault,
	},
	{
		name: "rebuild resumed under a write", replicas: 2, size: 2, behind: true, turns: true, limit: 1_000_000,
		budget: budget{faults: 1, holders: 2, ops: 1, ticks: 1, atOnce: 1},
		shapes: []shape{{Change, 1, 1}}, faults: []fault{killHolder, powerLoss},
	},
	{
		name: "rebuild resumed", replicas: 2, size: 2, behind: true, turns: true, limit: 200_000,
		budget: budget{faults: 1, holders: 2, ticks: 1, atOnce: 1},
		faults: []fault{rebootNode, killHolder, powerLoss, swapBefore, swapAfter, swapLate},
	},
	{
		name: "rebuild resumed, then replaced", replicas: 2, size: 2, behind: true, turns: true, limit: 1_000_000,
		budget: budget{faults: 1, holders: 2, ticks: 1, replaces: 1, atOnce: 1},
		faults: []fault{killHolder, rebootNode},
	},
	{
		name: "asked early", replicas: 2, size: 1, limit: 200_000, early: true,
		budget: budget{faults: 1, holders: 1, ops: 2, closes: 1, atOnce: 2},
		shapes: []shape{{Change, 0, 1}, {Flush, 0, 0}}, faults: []fault{crashProcess, swapAfter, powerLoss},
	},
	{
		name: "grow alone", replicas: 2, size: 1, opened: true, limit: 200_000,
		budget: budget{ops: 1, grows: 1, atOnce: 1},
		shapes: aChange,
	},
	{
		name: "store set back", replicas: 2, size: 1, limit: 200_000,
		budget: budget{faults: 2, holders: 2, ops: 1, closes: 1, atOnce: 1},
		shapes: aChange, faults: []fault{crashProcess, storeBack},
	},
	{
		name: "store set back, and more", replicas: 2, size: 1, limit: 1_000_000,
		budget: budget{faults: 2, holders: 2, closes: 1, atOnce: 1}, last: storeBack,
		faults: []fault{crashProcess, rebootNode, breakConn, powerLoss, swapBefore, swapAfter, killHolder, storeBack},
	},
	{
		name: "store set back, three replicas", replicas: 3, size: 1, limit: 1_000_000, away: true,
		budget: budget{faults: 1, holders: 2, ops: 1, closes: 1, replaces: 1, atOnce: 1}, last: storeBack,
		shapes: flushes, faults: []fault{storeBack},
	},
	{
		name: "store set back, grown", replicas: 2, size: 1, limit: 200_000, opened: true,
		budget: budget{faults: 1, holders: 1, grows: 1, closes: 1, atOnce: 1}, last: storeBack,
		faults: []fault{storeBack},
	},
	{
		name: "replaced", replicas: 2, size: 1, limit: 1_000_000, away: true,
		budget: budget{faults: 1, holders: 2, ops: 1, replaces: 1, atOnce: 1},
		shapes: []shape{{Change, 0, 1}, {Flush, 0, 0}}, faults: anyFault,
	},
	{
		name: "replaced, three replicas", replicas: 3, size: 1, limit: 1_000_000, away: true,
		budget: budget{faults: 1, holders: 2, ops: 1, replaces: 1, grows: 1, atOnce: 1},
		shapes: flushes, faults: []fault{swapBefore, swapAfter},
	},
	{
		name: "swaps in doubt", replicas: 2, size: 1, limit: 200_000, away: true,
		budget: budget{faults: 3, holders: 1, ops: 2, atOnce: 1},
		shapes: []shape{{Change, 0, 1}, {Flush, 0, 0}}, faults: []fault{swapBefore, swapLate, breakConn},
	},
	{
		name: "flush and grow", replicas: 2, size: 1, limit: 1_000_000, opened: true,
		budget: budget{faults: 1, holders: 2, ops: 1, grows: 1, atOnce: 1},
		shapes: flushes, faults: []fault{killHolder, crashProcess},
	},
	{
		name: "grow", replicas: 2, size: 1, opened: true, limit: 3_000_000,
		budget: budget{faults: 1, holders: 2, ops: 1, grows: 1, closes: 1, atOnce: 1},
		shapes: aChange, faults: anyFault,
	},
	{
		name: "answers apart", replicas: 2, size: 1, opened: true, limit: 3_000_000, apart: true,
		budget: budget{faults: 1, holders: 2, ops: 1, ticks: 0, atOnce: 1},
		shapes: anyRequest, faults: anyFault,
	},
	{
		name: "one fault", replicas: 2, size: 1, opened: true, limit: 3_000_000,
		budget: budget{faults: 1, holders: 2, ops: 2, atOnce: 1},
		shapes: anyRequest, faults: anyFault,
	},
	{
		name: "two faults", replicas: 2, size: 1, opened: true, limit: 3_000_000,
		budget: budget{faults: 2, holders: 2, ops: 1, atOnce: 1},
		shapes: aChange, faults: anyFault,
	},
	{
		name: "three replicas", replicas: 3, size: 1, opened: true, limit: 3_000_000,
		budget: budget{faults: 1, holders: 2, ops: 1, atOnce: 1},
		shapes: aChange, faults: anyFault,
	},
	{
		name: "a leg comes back", replicas: 2, size: 1, opened: true, limit: 200_000, rejoin: 4,
		budget: budget{faults: 1, holders: 1, ops: 2, atOnce: 1},
		shapes: []shape{{Change, 0, 1}, {Flush, 0, 0}}, faults: []fault{crashProcess, rebootNode, breakConn},
	},
	{
		name: "a leg comes back, or too late", replicas: 2, size: 1, opened: true, limit: 1_000_000, rejoin: 4,
		budget: budget{faults: 1, holders: 2, ops: 1, ticks: 1, atOnce: 1},
		shapes: aChange, faults: []fault{crashProcess, rebootNode, breakConn},
	},
	{
		name: "both legs come back", replicas: 2, size: 1, opened: true, limit: 3_000_000, rejoin: 4,
		budget: budget{faults: 2, holders: 2, ops: 1, atOnce: 1},
		shapes: aChange, faults: []fault{crashProcess, rebootNode, killHolder, takeOver},
	},
	{
		name: "rebuild resumed by the same writer", replicas: 2, size: 2, behind: true, turns: true, limit: 1_000_000,
		budget: budget{faults: 1, holders: 1, ticks: 2, atOnce: 1},
		faults: []fault{crashProcess, rebootNode, breakConn},
	},
	{
		name: "resync resumed under a write", replicas: 2, size: 2, behind: true, known: true, turns: true, limit: 1_000_000,
		budget: budget{faults: 1, holders: 2, ops: 1, ticks: 1, atOnce: 1},
		shapes: aChange, faults: []fault{killHolder, powerLoss},
	},
	{
		name: "rebuild resumed, two faults", replicas: 2, size: 2, behind: true, turns: true, limit: 1_000_000,
		budget: budget{faults: 2, holders: 2, ticks: 1, atOnce: 1},
		faults: []fault{rebootNode, killHolder, powerLoss},
	},
	{
		name: "rebuild resumed, three replicas", replicas: 3, size: 2, behind: true, turns: true, limit: 1_000_000,
		budget: budget{faults: 1, holders: 2, ticks: 1, atOnce: 1},
		faults: []fault{killHolder, rebootNode, powerLoss},
	},
	{
		name: "rebuild under writes", replicas: 2, size: 2, opened: true, turns: true, limit: 3_000_000,
		budget: budget{faults: 1, holders: 1, ops: 2, ticks: 1, atOnce: 2},
		shapes: []shape{{Change, 0, 1}, {Change, 0, 2}, {Read, 0, 1}}, faults: []fault{crashProcess, rebootNode},
	},
}
