global using System;
global using System.Collections.Generic;
global using FsCheck;
global using FsCheck.Fluent;
global using FsCheck.Xunit;
global using Xunit;
