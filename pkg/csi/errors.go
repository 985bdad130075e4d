package csi

import (
	"google.golang.org/grpc/status"

	"github.com/holdfast-csi/holdfast/pkg/rpcerr"
)

// toStatus makes a gRPC status of an error that leaves a service. The few that
// are one already (codes that no sentinel has) stay as they are.
func toStatus(err error) error {
	if _, made := err.(interface{ GRPCStatus() *status.Status }); made {
		return err
	}
	return rpcerr.ToStatus(err)
}
