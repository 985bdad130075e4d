package standalone

import (
	"context"
	"errors"

	"github.com/holdfast-csi/holdfast/pkg/standalone/left"
)

// Down removes what a killed standalone left: processes, mounts, loop devices
// and sockets. Data stays.
func Down(ctx context.Context, dir string) error {
	l, err := ReadLayout(dir)
	if err != nil {
		return err
	}
	lock, err := lockDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(sweep(ctx, dir, l), lock.Close())
}

// sweep kills the processes that the pid files name, unmounts everything below
// dir, and detaches the loop devices whose file is there.
func sweep(ctx context.Context, dir string, l Layout) error {
	var errs []error
	for _, name := range l.Processes {
		errs = append(errs, killStale(pidFile(dir, name)))
	}
	return errors.Join(append(errs, left.Remove(ctx, dir))...)
}
