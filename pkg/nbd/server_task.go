package nbd

import (
	"fmt"
	"math"
	"sync/atomic"
	"time"

	"github.com/holdfast-csi/holdfast/pkg/block"
)

// The states of a task that the device has, or had.
const (
	taskSubmitting int32 = iota // Submit has not returned
	taskSubmitted               // it has; whoever calls Done sends the reply
	taskAnswered                // Done was called before; the submitter sends the reply
)

// task is a request in flight: from the reading of its header until its reply
// was sent. It is used again, so that a request allocates nothing.
type task struct {
	frame    frame // the reply
	req      request
	io       block.IO
	conn     *conn
	buf      *buffer // payload, in or out
	reserved int64   // bytes of it that count
	err      error   // of the device
	state    atomic.Int32
	nextFree *task
}

// handle carries one request out, or has it carried out; its payload still is
// in the input. An error means that the connection must end.
func (c *conn) handle(req request) error {
	refused := c.check(req)
	if req.typ == cmdWrite && refused != 0 {
		if req.length > defaultMaxPayload {
			return badf("a write of %d bytes", req.length)
		}
		if err := c.skipPayload(int64(req.length)); err != nil {
			return err
		}
	}
	var n int64
	if refused == 0 && (req.typ == cmdRead || req.typ == cmdWrite) {
		n = int64(req.length)
	}
	t, err := c.acquire(n)
	if err != nil {
		return err
	}
	t.req = req
	if refused != 0 || req.length == 0 && opOf(req.typ).Changes() {
		c.answer(t, refused)
		c.hold(t)
		return nil
	}
	t.io.Op, t.io.Off, t.io.Len = opOf(req.typ), int64(req.off), int64(req.length)
	t.io.FUA, t.io.NoHole = req.flags&cmdFlagFUA != 0, req.flags&cmdFlagNoHole != 0
	switch req.typ {
	case cmdRead:
		t.io.FUA = false
		if n > 0 { // an empty read asks whether the device still answers
			t.io.Data = t.buf.data[:n]
		}
	case cmdWrite:
		t.io.Data = t.buf.data[:n]
		if err := c.readPayload(t.io.Data); err != nil {
			c.answer(t, errnoIO) // goes nowhere, but gives the task back
			c.hold(t)
			return err
		}
	case cmdFlush:
		t.io.Off, t.io.Len, t.io.FUA = 0, 0, false
	}
	c.start(t)
	return nil
}

// opOf is the device's word for a command; 0 if it has none.
func opOf(typ uint16) block.Op {
	switch typ {
	case cmdRead:
		return block.OpRead
	case cmdWrite:
		return block.OpWrite
	case cmdFlush:
		return block.OpFlush
	case cmdTrim:
		return block.OpTrim
	case cmdWriteZeroes:
		return block.OpWriteZeroes
	}
	return 0
}

// allowedFlags are the flags of each command; FUA is allowed everywhere, and
// means something to those that change the device.
func (c *conn) allowedFlags(typ uint16) (flags uint16, known bool) {
	switch typ {
	case cmdRead:
		if c.structured {
			return cmdFlagFUA | cmdFlagDF, true
		}
		return cmdFlagFUA, true
	case cmdWrite, cmdFlush, cmdTrim:
		return cmdFlagFUA, true
	case cmdWriteZeroes:
		return cmdFlagFUA | cmdFlagNoHole, true
	case cmdBlockStatus:
		return cmdFlagFUA | cmdFlagReqOne, c.allocation
	}
	return 0, false
}

// check says why a request is refused before the device sees it; 0: it is not.
func (c *conn) check(req request) errno {
	flags, known := c.allowedFlags(req.typ)
	switch {
	case !known, req.flags&^flags != 0:
		return errnoInvalid
	case req.typ == cmdFlush:
		return 0 // offset and length are reserved
	case (req.typ == cmdRead || req.typ == cmdWrite) && req.length > maxPayload:
		return errnoInvalid
	case req.typ == cmdBlockStatus && req.length == 0:
		return errnoInvalid
	case opOf(req.typ).Changes() && c.export.ReadOnly():
		return errnoPerm
	}
	size := uint64(c.export.Size())
	if req.off > math.MaxInt64 || req.off > size || uint64(req.length) > size-req.off {
		if req.typ == cmdWrite || req.typ == cmdWriteZeroes {
			return errnoNoSpace
		}
		return errnoInvalid
	}
	return 0
}

// start executes a request here, or hands it to a worker. Only the reader calls
// it.
func (c *conn) start(t *task) {
	if t.req.typ != cmdRead && t.req.typ != cmdWrite || t.io.FUA || !c.prompt && c.speed.slow() {
		c.handOff(t)
		return
	}
	began := time.Now()
	if c.execute(t) {
		took := time.Since(began)
		c.speed.note(took, int(t.req.length))
		c.hold(t)
		if took > corkTime {
			c.uncork()
		}
	}
}

// corkTime is the time that a single request may hold the replies before it up
// for; thereafter they are sent at once.
const corkTime = 50 * time.Microsecond

// handOff gives a task to an idle worker, or a new one, or waits for one.
func (c *conn) handOff(t *task) {
	select {
	case c.work <- t:
		return
	default:
	}
	if c.spawned < c.server.opts.Workers {
		c.spawned++
		c.workers.Go(func() { c.worker(t) })
		return
	}
	c.uncork()
	select {
	case c.work <- t:
	case <-c.gone:
		// The workers may be in a device that answers only when it is closed,
		// which the reader does when it has come home.
		c.answer(t, errnoShutdown)
		c.hold(t)
	}
}

// worker executes requests that wait. It lives as long as the connection.
func (c *conn) worker(t *task) {
	for {
		began := time.Now()
		if c.execute(t) {
			if t.req.typ == cmdRead || t.req.typ == cmdWrite && !t.io.FUA {
				c.speed.note(time.Since(began), int(t.req.length))
			}
			c.out.send(&t.frame, &t.frame)
		}
		select {
		case <-c.stop:
			return
		case t = <-c.work:
		}
	}
}

// execute runs a task. True: its reply is ready and the caller's to send.
// False: Done will be called, or was, elsewhere, and sends it.
func (c *conn) execute(t *task) bool {
	if t.req.typ == cmdBlockStatus {
		c.blockStatus(t)
		return true
	}
	t.state.Store(taskSubmitting)
	c.export.Submit(&t.io)
	if t.state.CompareAndSwap(taskSubmitting, taskSubmitted) {
		return false
	}
	c.answerIO(t)
	return true
}

// finished is Done of every request. It is called by the device, and does not
// wait.
func (c *conn) finished(io *block.IO, err error) {
	t := io.User.(*task)
	t.err = err
	if t.state.CompareAndSwap(taskSubmitting, taskAnswered) {
		return
	}
	c.answerIO(t)
	c.out.send(&t.frame, &t.frame)
}

// answerIO makes the reply after the device's answer.
func (c *conn) answerIO(t *task) {
	err := t.err
	t.err, t.io.Data = nil, nil
	e := errnoFor(t.io.Op, err)
	if e == errnoIO {
		c.reportError(&t.io, err)
	}
	c.answer(t, e)
}

// answer makes the reply: structured for what must be, simple else.
func (c *conn) answer(t *task, e errno) {
	f := &t.frame
	f.payload = nil
	mustStructure := c.structured && (t.req.typ == cmdRead || t.req.typ == cmdBlockStatus)
	switch {
	case e != 0 && mustStructure:
		f.payload = appendErrorData(nil, e, fmt.Sprintf("%s at %d+%d: %s", commandName(t.req.typ), t.req.off, t.req.length, e))
		f.headLen = chunkBytes
		chunk{chunkFlagDone, chunkError, t.req.cookie, uint32(len(f.payload))}.put(f.head[:])
	case e != 0 || t.req.typ != cmdRead || !c.structured:
		f.headLen = simpleBytes
		simple{e, t.req.cookie}.put(f.head[:])
	case t.req.length == 0:
		f.headLen = chunkBytes
		chunk{chunkFlagDone, chunkNone, t.req.cookie, 0}.put(f.head[:])
	default:
		f.headLen = chunkBytes + chunkOffsetBytes
		chunk{chunkFlagDone, chunkOffsetData, t.req.cookie, chunkOffsetBytes + t.req.length}.put(f.head[:])
		be.PutUint64(f.head[chunkBytes:], t.req.off)
	}
	if e == 0 && t.req.typ == cmdRead && t.req.length > 0 {
		f.payload = t.buf.data[:t.req.length]
		return
	}
	c.releaseBuffer(t)
}

func commandName(typ uint16) string {
	if typ == cmdBlockStatus {
		return "block-status"
	}
	return opOf(typ).String()
}

// maxStatusExtents is the most descriptors of one BLOCK_STATUS reply.
const maxStatusExtents = 128 << 10

// blockStatus answers BLOCK_STATUS, for less than was asked if that was much.
func (c *conn) blockStatus(t *task) {
	n := min(int64(t.req.length), maxStatusRange)
	extents, err := c.export.BlockStatus(int64(t.req.off), n)
	limit := maxStatusExtents
	if t.req.flags&cmdFlagReqOne != 0 {
		limit = 1
	}
	var data []byte
	if err == nil {
		var described int64
		if data, described = appendExtents(nil, extents, n, limit); described == 0 {
			err = fmt.Errorf("the export described nothing of %d bytes at %d", n, t.req.off)
		}
	}
	if err != nil {
		e := errnoFor(0, err)
		if e == errnoIO {
			c.log.Warn("nbd block status failed", "offset", t.req.off, "length", n, "error", err)
		}
		c.answer(t, e)
		return
	}
	t.frame.headLen = chunkBytes
	chunk{chunkFlagDone, chunkBlockStatus, t.req.cookie, uint32(len(data))}.put(t.frame.head[:])
	t.frame.payload = data
}
