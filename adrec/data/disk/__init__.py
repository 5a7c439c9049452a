"""What lies on disk: tables read and checked, outputs written aside and guarded, the out-of-core engine."""
