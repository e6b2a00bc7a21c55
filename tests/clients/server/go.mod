module towline.test/server

go 1.26
